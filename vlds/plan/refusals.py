"""What `vlds train` refuses before its first step, found out without weights.

Left to the run are the facts of its start: the output folder, disk, device and installed packages;
damage in weight files; and what only the built model or all data to evaluate can tell. Files and
data that are not on this machine are no mistake here, since plans are made for other machines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vlds.data.order.mixed_order import BatchCut
from vlds.data.streams.assemble import StreamSetup
from vlds.evaluation.evaluator import nothing_learned, unknown_answers
from vlds.models.loading.model_files import SourceError
from vlds.models.model import Model
from vlds.recipe.config import Recipe
from vlds.schema import Collator
from vlds.training.alignment import check_alignment
from vlds.training.checkpoint import check_best_task
from vlds.training.meta import check_meta
from vlds.training.prepare import (
    check_learnable,
    check_recipe,
    open_sources,
    outside_peft,
    stream_of,
    with_steps,
)
from vlds.training.run import check_choices
from vlds.training.transfer import Transfer


def check_before_building(recipe: Recipe, cuts: Sequence[BatchCut]) -> list[str]:
    """Check recipe, processor and data as a run does; what to tell the user.

    Errors: ValueError, as the run's.
    """
    collator: Collator | None = None
    with unless_elsewhere(recipe.model.read_files, SourceError):
        for cut in cuts:
            check_learnable(recipe, cut)
        collator = recipe.model.collator(recipe.model.load_processor(), recipe.training.dtype)
    for cut in cuts:
        check_recipe(recipe, cut)
    notes: list[str] = []
    tasks = recipe.tasks.values()
    folders = [folder for task in tasks for folder in (*task.train, *task.evaluate)]
    with unless_elsewhere([*folders, *recipe.model.read_files], ValueError):
        for cut in cuts:
            train, streamed, evaluation = open_sources(recipe, cut, range(1))
            if collator is not None:
                setup = StreamSetup(collator=collator, image=recipe.image, cut=cut)
                stream_of(recipe, train, streamed, setup)
        for source in evaluation:
            if source.datasets:
                source.check(recipe.image)
        with_steps(recipe, train or streamed)
        notes += [*unknown_answers(train), *nothing_learned(train)]
    if recipe.training.best is not None:
        check_best_task(recipe.training.best, [n for n, t in recipe.tasks.items() if t.evaluate])
    return notes


def check_shapes(recipe: Recipe, model: Model) -> list[str]:
    """Check the shapes of a recipe's model as a run does the model; what to tell the user.

    Errors: ValueError, as the run's.
    """
    if model.processor is not None:
        check_choices(recipe, model)
    if recipe.meta is not None:
        check_meta(model)
    if recipe.alignment is not None:
        check_alignment(recipe, model)
    notes: list[str] = []
    if recipe.start is not None:
        with unless_elsewhere([recipe.start], ValueError):
            transfer = Transfer.of(recipe)
            assert transfer is not None
            notes += transfer.fit(model)
    return [*notes, *outside_peft(recipe, model)]


@contextmanager
def unless_elsewhere(places: Iterable[str], kind: type[ValueError]) -> Iterator[None]:
    """Inside, errors of this kind are nobody's mistake if one of the files and folders is not on
    this machine."""
    try:
        yield
    except kind:
        if all(Path(place).exists() for place in places):
            raise
