"""The lists of data sets on which a run's tasks are scored, `evaluate` and `test`: which are read,
what is in them, and what the run answers."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from vlds.artifact import LoadedRun, artifact_folder, read_recipe
from vlds.config import Recipe
from vlds.data.order.permutation import hashed
from vlds.data.shards.remote import is_url
from vlds.data.streams.source import Source
from vlds.evaluation.evaluator import Evaluator, evaluation_sources
from vlds.evaluation.result import Evaluation
from vlds.runtime.ranks import Ranks
from vlds.runtime.run_folder import BLANK, PREDICTIONS
from vlds.tasks.base import SPLITS, Split, label_of, task_of

LONGEST_NAME = 100
"""Characters of data sets' names in the name of a folder."""


def check_splits(recipe: Recipe, run: Path, asked: Sequence[Split]) -> list[Split]:
    """The lists to read: those that were asked for, else all under which a task names data.

    Errors: ValueError where no task names any.
    """
    named = [s for s in SPLITS if any(task.data_of(s) for task in recipe.tasks.values())]
    if not named:
        raise ValueError(
            f"--data: the recipe of {run} names nothing to evaluate on; name data set folders"
        )
    if missing := [split for split in asked if split not in named]:
        raise ValueError(
            f"--split: no task of {run} names data sets under `{missing[0]}`; name them with "
            f"--data, or with --tasks.TASK.{missing[0]}"
        )
    return [split for split in named if split in asked or not asked]


def results_folder(run: Path, recipe: Recipe, sources: Sequence[Source]) -> Path:
    """Where results go that name no folder: RUN/predictions for what the run itself is scored on.
    Other data have a folder of their own below it, and so have pictures left blank: a report
    would show their scores as the run's.
    """
    own = read_recipe(artifact_folder(run))
    folder = run / PREDICTIONS
    read = [source for source in sources if source.datasets]
    if any(places(recipe, source.name) != places(own, source.name) for source in read):
        ids = list(dict.fromkeys(source.data_id for source in read))
        names = "+".join(entry.partition("@")[0] for entry in ids)
        folder /= f"{names[:LONGEST_NAME]}@{hashed(ids)}"
    return folder / BLANK if recipe.data.blank_images and not own.data.blank_images else folder


def places(recipe: Recipe, label: str) -> list[str]:
    """Where the data sets of a task's list lie."""
    name = task_of(label)
    folders = recipe.tasks[name].data_of("evaluate" if label == name else "test")
    return [folder if is_url(folder) else os.path.realpath(folder) for folder in folders]


def open_list(recipe: Recipe, split: Split, asked: Sequence[Split]) -> list[Source]:
    """`evaluation_sources`, whose errors tell how to do without test data that nobody asked for."""
    try:
        return evaluation_sources(recipe, split)
    except ValueError as error:
        if split in asked or split != "test":
            raise
        raise ValueError(f"{error}; or leave test data out: --split evaluate") from error


def decode(
    run: LoadedRun,
    lists: Sequence[Sequence[Source]],
    ranks: Ranks,
    say: Callable[[str], None],
    *,
    score: bool,
) -> list[Evaluation]:
    """The evaluations of lists of sources, in their order; on the first rank alone. Data that a
    task names under both `evaluate` and `test` are decoded once."""
    again = {
        label_of(name, "test"): name
        for name, task in run.recipe.tasks.items()
        if len(lists) > 1 and task.test and task.test == task.evaluate
    }
    evaluators = [
        Evaluator(
            run.recipe,
            [replace(s, datasets=[]) if s.name in again else s for s in sources],
            run.tokenizer,
            ranks,
            say,
        )
        for sources in lists
    ]
    model = run.model.to(ranks.device)
    found = {e.task: e for evaluator in evaluators for e in evaluator(model, score=score)}
    found |= {label: replace(found[name], task=label) for label, name in again.items() if found}
    return [found[s.name] for sources in lists for s in sources if s.name in found]
