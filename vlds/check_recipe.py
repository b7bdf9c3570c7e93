"""What is wrong with `vlds train ...`, found before any rank starts."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vlds.launch import complain
from vlds.restarts import RESUME, Job, take_resume
from vlds.runtime.terminal import tell
from vlds.training.states import Resume, check_output

if TYPE_CHECKING:  # importing it for good would make each command's help wait for torch
    from vlds.config import Recipe

NEW_PHASE = "--new_phase"


def training_options(arguments: list[str]) -> tuple[Recipe, Literal["auto"] | bool, bool]:
    """The recipe, whether to resume, and whether it is a new phase.

    Errors: ValueError for mistakes in the recipe, and for a new phase of nothing.
    """
    from vlds.config import parse_recipe

    resume, words = take_resume(arguments)
    new_phase = NEW_PHASE in words
    if new_phase and not resume:
        raise ValueError(f"{NEW_PHASE}: goes with {RESUME}: a new run has no earlier phase")
    words = [word for word in words if word != NEW_PHASE]
    return parse_recipe(words, "vlds train"), resume, new_phase


def check_recipe(arguments: list[str], ranks: int | None) -> int:
    """Say what is wrong with the arguments of `vlds train`, if anything is; the exit code. What the
    supervisor has to know of the recipe is printed. `ranks`: how many will start, if that is known.
    """
    try:
        with names_fit():
            recipe, resume, _ = training_options(arguments)
            check_start(recipe, resume, ranks)
    except ValueError as error:
        return complain("vlds train", error)
    largest = max(recipe.batch_sizes.values())
    job = Job(str(recipe.output), largest, recipe.data.micro_batch_size)
    tell(json.dumps(asdict(job)))
    return 0


def check_start(recipe: Recipe, resume: Resume, ranks: int | None) -> None:
    """Check what is known before any rank starts: whether the output folder holds a run, the sizes
    of batches, names on the hub, and whether a run that is resumed finds its files from here.

    Errors: ValueError that names the key.
    """
    from vlds.config import to_tree
    from vlds.data import BatchCut
    from vlds.recipe_paths import left_behind

    saved = Path(recipe.output) / "recipe.yaml"
    if resume and (said := left_behind(to_tree(recipe), saved)) is not None:
        raise ValueError(f"{RESUME}: {said}")
    check_output(Path(recipe.output), resume)
    for field, size in recipe.batch_sizes.items():
        BatchCut(ranks or 1).check(size, field)
    recipe.backbone.check_sources()
    recipe.vision.check_sources()


@contextmanager
def names_fit() -> Iterator[None]:
    """Inside, a path that is longer than the system takes is a mistake of the user's.

    Errors: ValueError that names it.
    """
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise ValueError(f"{error.filename}: {error.strerror}; name another place") from None
