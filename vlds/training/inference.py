"""Use a run: score it on data sets, write what it predicts for them, or answer one question. Each
rank holds the whole model. And score predictions that lie in a file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from vlds.artifact import LoadedRun, artifact_folder, check_changes, load_run, read_recipe
from vlds.config import Recipe
from vlds.data import Source, open_dataset
from vlds.data.cache_limit import check_cache_limit
from vlds.data.collate import ImageStack, Row, collate
from vlds.data.decode import decode_image
from vlds.runtime.disk import check_writable
from vlds.runtime.regular_file import read_file
from vlds.runtime.terminal import tell
from vlds.schema import Sample, SkipSample
from vlds.tasks.base import Split, Task
from vlds.training.distributed import hold_folder, rank_from_environment
from vlds.training.engine import start_ranks
from vlds.training.evaluate import with_answer_lists
from vlds.training.evaluation import Evaluation, leave
from vlds.training.lists import check_splits, decode, open_list
from vlds.training.submission import write_submissions

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
    folder = out or run / "predictions"
    with decoded(run, data, splits, folder, changes, score=True) as (_, evaluations):
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
    folder = out or run / "predictions"
    with decoded(run, data, splits, folder, changes, score=False) as (sources, evaluations):
        leave(evaluations, folder, scores=False)
        for line in write_submissions(sources, evaluations, folder):
            tell(line)
    return 0


@contextmanager
def decoded(
    run: Path,
    data: Sequence[str],
    splits: Sequence[Split],
    out: Path,
    changes: Sequence[str],
    *,
    score: bool,
) -> Iterator[tuple[list[Source], list[Evaluation]]]:
    """Data sets decoded on all ranks, the evaluations on the first one. Inside, `out` is held for
    them. Collective.

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
    check_writable(out, "--out")
    loaded = load_run(run, changes=changes)
    ranks = start_ranks(LONGEST_WAIT)
    if ranks.is_first:
        for split in splits:
            for name in (name for name, task in recipe.tasks.items() if not task.data_of(split)):
                say(f"{name}: left out, its task names no data sets under `{split}`")
    with hold_folder(ranks, out):
        loaded = replace(loaded, recipe=recipe)
        yield sources, decode(loaded, lists, ranks, say, score=score)
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
        tell(answer)
    return 0


def choose_task(recipe: Recipe, name: str | None, question: str) -> str:
    """The task that is meant.

    Errors: ValueError where the run has several and none is named, or a needed question is missing.
    """
    known = ", ".join(recipe.tasks)
    if name is None and len(recipe.tasks) > 1:
        raise ValueError(f"--task: the run has several tasks, say which: {known}")
    chosen = name or next(iter(recipe.tasks))
    if chosen not in recipe.tasks:
        raise ValueError(f"--task: the run has no task {chosen}; its tasks: {known}")
    if recipe.tasks[chosen].input_field is not None and not question:
        raise ValueError(f"--question: the task {chosen} needs one")
    return chosen


def predict(
    loaded: LoadedRun,
    name: str,
    pictures: Sequence[bytes],
    text: str,
    files: Sequence[str] = (),
) -> str:
    """One prediction: `text` is the question or statement, pictures are encoded files, of these
    names where they have some.

    Errors: ValueError for bytes that are no picture, or a run whose encoder reads stored features.
    """
    task, image = loaded.recipe.tasks[name], loaded.recipe.image
    if image is None:
        raise ValueError("--image: the run's vision encoder reads stored features, not pictures")
    sample = sample_of(task, pictures, text)
    example = task.example(name, sample, 0 if task.unit == "annotation" else None, None)
    names = files or [f"number {number}" for number in range(1, len(pictures) + 1)]
    try:
        pixels = [decode_image(d, image, n) for d, n in zip(pictures, names, strict=True)]
    except SkipSample as error:
        reason = re.sub(r" <_io\.\w+ object at \w+>", "", str(error))  # Pillow's word for it
        raise ValueError(f"--image: {reason}; name a file with a whole picture") from None
    stack = ImageStack(1)
    images = stack.add(pixels)
    number = list(loaded.recipe.tasks).index(name)
    row = Row(example, number, task.max_prompt_tokens, task.max_target_tokens, images)
    batch = collate([row], stack, loaded.tokenizer, features=False, evaluation=True)
    return task.answer_from(loaded.model.answer(batch, task.decoding)[0].text)


def sample_of(task: Task, pictures: Sequence[bytes], text: str) -> Sample:
    """A sample made of a user's pictures and text."""
    annotation = {"id": "0"} if task.input_field is None else {"id": "0", task.input_field: text}
    return Sample(
        key="0",
        dataset="command line",
        id="0",
        kind=task.kinds[0],
        images=tuple(pictures),
        features=(),
        annotations=(annotation,),
    )
