"""Use a run: score it on data sets, or answer one question. Each rank holds the whole model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vlds.artifact import LoadedRun, load_run
from vlds.config import Recipe
from vlds.data import open_dataset
from vlds.data.collate import ImageStack, Row, collate
from vlds.data.decode import decode_image
from vlds.schema import Sample, SkipSample
from vlds.tasks.base import Task
from vlds.training.engine import start_ranks
from vlds.training.evaluate import Evaluation, evaluate, evaluation_sources


def evaluate_run(run: Path, data: Sequence[str], out: Path | None) -> int:
    """Score a run on its own evaluation data, or on `data`; prints scores, writes predictions.
    Exit code."""
    loaded = load_run(run)
    recipe = with_data(loaded.recipe, data) if data else loaded.recipe
    tasks = {name: task.thorough() for name, task in recipe.tasks.items()}
    recipe = replace(recipe, tasks=tasks)
    sources = evaluation_sources(recipe)
    if not any(source.datasets for source in sources):
        raise ValueError(
            f"--data: the recipe of {run} names nothing to evaluate on; name data set folders"
        )
    ranks = start_ranks(recipe.training.collective_timeout)
    model = loaded.model.to(ranks.device)
    evaluations = evaluate(model, recipe, sources, loaded.tokenizer, ranks)
    for evaluation in evaluations:
        evaluation.write(out or run / "predictions")
        tell(evaluation)
    ranks.barrier()
    return 0


def tell(evaluation: Evaluation) -> None:
    """All scores of a task, one a line."""
    print(f"{evaluation.task} ({len(evaluation.predictions)} examples)")
    for name, value in evaluation.scores.items():
        print(f"  {name:<40} {value:.4f}")
    for line in evaluation.unreadable:
        print(f"  could not be read: {line}")


def with_data(recipe: Recipe, data: Sequence[str]) -> Recipe:
    """The recipe with these evaluation data instead of its own: FOLDER, or TASK=FOLDER.

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
    tasks = {name: replace(task, evaluate=folders[name]) for name, task in recipe.tasks.items()}
    return replace(recipe, tasks=tasks)


def task_for(recipe: Recipe, folder: str) -> str:
    """The one task of a recipe that reads a data set's kind of samples."""
    kind = open_dataset(folder, recipe.data.shard_cache).kind
    names = [name for name, task in recipe.tasks.items() if kind in task.kinds]
    if len(names) != 1:
        known = ", ".join(f"{name} reads {'/'.join(t.kinds)}" for name, t in recipe.tasks.items())
        raise ValueError(
            f"--data: {folder} holds samples of kind '{kind}', which {len(names)} tasks of the "
            "run read "
            f"({known}); say TASK={folder}"
        )
    return names[0]


def predict_one(run: Path, images: Sequence[Path], question: str, task_name: str | None) -> int:
    """Print the answer about pictures. Exit code."""
    loaded = load_run(run)
    name = choose_task(loaded.recipe, task_name, question)
    answer = predict(loaded, name, [path.read_bytes() for path in images], question)
    if os.environ.get("RANK", "0") == "0":
        print(answer)
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


def predict(loaded: LoadedRun, name: str, pictures: Sequence[bytes], text: str) -> str:
    """One prediction: `text` is the question or statement, pictures are encoded files.

    Errors: ValueError for bytes that are no picture, or a run whose encoder reads stored features.
    """
    task, image = loaded.recipe.tasks[name], loaded.recipe.image
    if image is None:
        raise ValueError("--image: the run's vision encoder reads stored features, not pictures")
    sample = sample_of(task, pictures, text)
    example = task.example(name, sample, 0 if task.unit == "annotation" else None, None)
    try:
        pixels = [decode_image(data, image, f"number {n}") for n, data in enumerate(pictures, 1)]
    except SkipSample as error:
        raise ValueError(f"--image: {error}") from None
    stack = ImageStack(1)
    images = stack.add(pixels)
    number = list(loaded.recipe.tasks).index(name)
    row = Row(example, number, task.max_prompt_tokens, task.max_target_tokens, images)
    batch = collate([row], stack, loaded.tokenizer, features=False, evaluation=True)
    ids = loaded.model.generate(batch, task.decoding)
    text = loaded.tokenizer.batch_decode(ids, skip_special_tokens=True)[0]
    return str(text).strip()


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
