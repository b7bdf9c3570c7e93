"""What the supervisor learns of `vlds train`'s recipe.

Reading it loads torch, which the supervisor does not: a separate process checks it before several
ranks start, and an only rank checks it itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from vlds.cli.start import JOB_FILE, RunFacts
from vlds.cli.words import RESUME, split_words
from vlds.data.order.mixed_order import BatchCut
from vlds.recipe.build import to_tree
from vlds.recipe.config import Recipe, parse_recipe
from vlds.recipe.paths import check_files, inputs_of, left_behind
from vlds.runtime.disk import names_fit
from vlds.runtime.terminal import complain, tell
from vlds.training.states import Resume, check_output


def check_recipe(arguments: Sequence[str], ranks: int | None) -> int:
    """Print what the supervisor needs to know of a recipe (`RunFacts`), or what is wrong with it;
    the exit code. `ranks`: how many will start, if known."""
    try:
        with names_fit():
            words = split_words(arguments)
            recipe = parse_recipe(words.rest[1:], "vlds train")
            check_start(recipe, words.resume, ranks)
    except ValueError as error:
        return complain("vlds train", error)
    tell(facts_of(recipe))
    return 0


def report_facts(recipe: Recipe, resume: Resume) -> None:
    """Do the same in the only rank of a run, if its supervisor has left that to it.

    Errors: ValueError as `check_start`.
    """
    if (file := os.environ.pop(JOB_FILE, None)) is not None:
        check_start(recipe, resume, 1)
        Path(file).write_text(facts_of(recipe), encoding="utf-8")


def facts_of(recipe: Recipe) -> str:
    """A recipe's `RunFacts` as JSON."""
    largest = max(recipe.batch_sizes.values())
    facts = RunFacts(str(recipe.output), largest, recipe.data.micro_batch_size)
    return json.dumps(asdict(facts))


def check_start(recipe: Recipe, resume: Resume, ranks: int | None) -> None:
    """Check what can be checked before any rank starts: the run in the output folder, the sizes of
    batches, names on the hub, and the files of a run that is resumed from another folder.

    Errors: ValueError that names the key.
    """
    # A run may be resumed from another working folder, where its relative paths lead elsewhere.
    saved = Path(recipe.output) / "recipe.yaml"
    if resume and (message := left_behind(to_tree(recipe), saved, Recipe)) is not None:
        raise ValueError(f"{RESUME}: {message}")
    check_files(to_tree(recipe), Recipe)
    check_output(recipe.output, resume, inputs_of(to_tree(recipe), Recipe))
    # If the number of ranks is not known yet, check what holds for any.
    for field, size in recipe.batch_sizes.items():
        BatchCut(ranks or 1).check(size, field)
    recipe.model.check_sources()
