"""Use a run: score it on data sets, write what it predicts for them, or answer one question. Each
rank holds the whole model. And score predictions that lie in a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from vlds.artifact import artifact_folder, check_changes, load_run, read_recipe
from vlds.config import Recipe
from vlds.data.shards.store import open_dataset
from vlds.data.streams.cache_limit import check_cache_limit
from vlds.data.streams.source import Source
from vlds.evaluation.answer import choose_task, predict
from vlds.evaluation.data import check_splits, decode, open_list, results_folder
from vlds.evaluation.evaluator import with_answer_lists
from vlds.evaluation.leaderboards import write_submissions
from vlds.evaluation.result import Evaluation, leave
from vlds.runtime.disk import check_writable
from vlds.runtime.ranks import hold_folder, rank_from_environment
from vlds.runtime.regular_file import read_file
from vlds.runtime.terminal import tell
from vlds.tasks.base import Split
from vlds.training.engine import start_ranks

LONGEST_WAIT = 24 * 3600.0
"""Seconds that a rank may wait for one that has more to do; the launcher sees one that died."""


def evaluate_run(
    run: Path,
    data: Sequence[str],
    splits: Sequence[Split],
    out: Path | None,
    changes: Sequence[str] = (),
) -> int:
    """Score a run on lists of its own recipe (default: all that name data), or on `data`; prints
    scores, writes predictions. `changes` to the recipe: as in `load_run`. Exit code."""
    with decoded(run, data, splits, out, changes, score=True) as (_, evaluations, folder):
        leave(evaluations, folder, scores=True)
    return 0


def predict_sets(
    run: Path,
    data: Sequence[str],
    splits: Sequence[Split],
    out: Path | None,
    changes: Sequence[str] = (),
) -> int:
    """Write a run's predictions for data sets, or for lists of its own recipe, and the files that
    leaderboards take. Exit code."""
    with decoded(run, data, splits, out, changes, score=False) as (sources, evaluations, folder):
        leave(evaluations, folder, scores=False)
        for line in write_submissions(sources, evaluations, folder):
            tell(line)
    return 0


@contextmanager
def decoded(
    run: Path,
    data: Sequence[str],
    splits: Sequence[Split],
    out: Path | None,
    changes: Sequence[str],
    *,
    score: bool,
) -> Iterator[tuple[list[Source], list[Evaluation], Path]]:
    """Data sets decoded on all ranks, the evaluations on the first one, and the folder for them,
    which is held inside. Collective.

    Errors: ValueError for what is wrong with the run, the data, the changes or `out`.
    """
    check_changes(changes)
    recipe = read_recipe(artifact_folder(run), changes)
    recipe = with_data(recipe, data) if data else recipe
    if score:
        tasks = {name: task.thorough() for name, task in recipe.tasks.items()}
        recipe = replace(recipe, tasks=tasks)
    recipe = with_answer_lists(recipe)
    lists = [open_list(recipe, s, splits) for s in check_splits(recipe, run, splits)]
    sources = [source for found in lists for source in found]
    check_cache_limit(recipe.data.cache_bytes, [], sources, window=recipe.data.window)
    out = results_folder(run, recipe, sources) if out is None else out
    check_writable(out, "--out")
    loaded = load_run(run, changes=changes)
    ranks = start_ranks(LONGEST_WAIT)
    if ranks.is_first:
        for split in splits:
            for name in (name for name, task in recipe.tasks.items() if not task.data_of(split)):
                say(f"{name}: left out, its task names no data sets under `{split}`")
    with hold_folder(ranks, out):
        loaded = replace(loaded, recipe=recipe)
        yield sources, decode(loaded, lists, ranks, say, score=score), out
        ranks.barrier()


def say(line: str) -> None:
    """Tell at once how far it is, beside what is printed."""
    tell(line, error=True, flush=True)


def with_data(recipe: Recipe, data: Sequence[str]) -> Recipe:
    """The recipe with these data alone to evaluate on: FOLDER, or TASK=FOLDER.

    Errors: ValueError where no task, or more than one, reads a folder's kind of samples.
    """
    folders: dict[str, list[str]] = {name: [] for name in recipe.tasks}
    for entry in data:
        name, equals, folder = entry.partition("=")
        if not equals:
            folder, name = entry, task_for(recipe, entry)
        if name not in folders:
            raise ValueError(f"--data: the run has no task {name}; its tasks: {', '.join(folders)}")
        folders[name].append(folder)
    tasks = {
        name: replace(task, evaluate=folders[name], test=[]) for name, task in recipe.tasks.items()
    }
    return replace(recipe, tasks=tasks)


def task_for(recipe: Recipe, folder: str) -> str:
    """The one task of a recipe that reads a data set's kind of samples."""
    kind = open_dataset(folder, recipe.data.shard_cache).kind
    names = [name for name, task in recipe.tasks.items() if kind in task.kinds]
    if len(names) != 1:
        known = ", ".join(f"{name} reads {'/'.join(t.kinds)}" for name, t in recipe.tasks.items())
        which = "several tasks of the run read" if names else "no task of the run reads"
        cure = f"say TASK={folder}" if names else "name another data set, or another run"
        raise ValueError(
            f"--data: {folder} holds samples of kind '{kind}', which {which} ({known}); {cure}"
        )
    return names[0]


def predict_one(
    run: Path,
    images: Sequence[Path],
    question: str,
    task_name: str | None,
    changes: Sequence[str] = (),
) -> int:
    """Print the answer about pictures. Exit code."""
    try:
        pictures = [read_file(path) for path in images]
    except OSError as error:
        raise ValueError(f"--image: {error.filename}: {error.strerror}") from None
    loaded = load_run(run, changes=changes)
    name = choose_task(loaded.recipe, task_name, question)
    answer = predict(loaded, name, pictures, question, list(map(str, images)))
    if rank_from_environment().is_first:
        tell(answer.text)
    return 0
