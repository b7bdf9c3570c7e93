"""The data that a recipe's tasks learn from and are scored on, opened and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vlds.config import Recipe
from vlds.data.shards.cache import ShardCache
from vlds.data.shards.store import Dataset, open_dataset
from vlds.data.shards.subset import few_shots, of_classes
from vlds.data.streams.source import NumPictures, Source
from vlds.data.streams.streamed_source import StreamedSource, open_streamed
from vlds.heads.base import check_classes, read_classes
from vlds.models.generation.answer_list import read_answers
from vlds.tasks.base import Split, Task, label_of


def evaluation_sources(recipe: Recipe, split: Split = "evaluate") -> list[Source]:
    """The data of one of the lists on which tasks are scored, one source a task; the source of a
    task that names no data there has no data sets.

    Errors: ValueError for a folder that holds no data set, or one of another kind, and for a score
    that was asked for and cannot be computed here.
    """
    for name, task in recipe.tasks.items():
        if task.data_of(split) and (missing := task.missing_for_scores()) is not None:
            raise ValueError(f"tasks.{name}.{missing}")
    return [
        data_source(recipe, name, task.data_of(split), split) for name, task in recipe.tasks.items()
    ]


def training_sources(recipe: Recipe) -> list[Source]:
    """The data that the recipe's tasks learn from; ValueError also for a task that names none."""
    check_train_data(recipe)
    sources = []
    for name, task in recipe.tasks.items():
        source = data_source(recipe, name, task.train)
        if (shots := task.num_shots) is not None:
            try:
                few: list[Any] = [few_shots(d, shots, recipe.seed) for d in source.datasets]
            except ValueError as error:
                raise ValueError(f"tasks.{name}.{error}") from None
            source = replace(source, datasets=few)
        sources.append(source)
    return sources


def streamed_sources(recipe: Recipe) -> list[StreamedSource]:
    """The same for the sequential reader, which needs no index."""
    check_train_data(recipe)
    if unknown := sorted(set(recipe.data.fields) - set(recipe.tasks)):
        raise ValueError(
            f"data.fields: no task is called {unknown[0]}; the tasks are {', '.join(recipe.tasks)}"
        )
    sources = []
    for name, task in recipe.tasks.items():
        if task.num_shots is not None or task.narrowed(("", "")) != ("", ""):
            raise ValueError(
                f"data.reader: sequential, which cannot choose the samples of tasks.{name}; leave "
                "its shots and half out, or read indexed shards"
            )
        try:
            fields = recipe.data.fields.get(name)
            datasets = [open_streamed(folder, task.kinds, fields) for folder in task.train]
        except ValueError as error:
            raise ValueError(f"tasks.{name}: {error}") from error
        limits = picture_limits(recipe, name)
        sources.append(StreamedSource(name, task, datasets, task.weight, task.batch_size, limits))
    return sources


def check_train_data(recipe: Recipe) -> None:
    """Errors: ValueError that names a task without training data."""
    for name, task in recipe.tasks.items():
        if not task.train:
            raise ValueError(f"tasks.{name}.train: names no data set; name at least one folder")


def data_source(
    recipe: Recipe, name: str, folders: Sequence[str], split: Split = "evaluate"
) -> Source:
    """A task of the recipe with some data sets, under the label of the split."""
    task, label = recipe.tasks[name], label_of(name, split)
    datasets = open_datasets(f"tasks.{label}", task, folders, recipe.data.shard_cache)
    for number, dataset in enumerate(datasets):
        classes = dataset.info.classes
        if classes is not None and (names := task.narrowed(classes)) != classes:
            datasets[number] = of_classes(dataset, names)
    limits = picture_limits(recipe, name)
    return Source(label, task, datasets, task.weight, task.batch_size, limits)


def picture_limits(recipe: Recipe, name: str) -> NumPictures:
    """How many pictures a task's samples may have; ValueError if the model takes fewer."""
    task, (most, field) = recipe.tasks[name], recipe.model.most_images
    if task.num_pictures is None:
        cure = f"raise {field}, or {NumPictures.cure}"
        return NumPictures(recipe.model.fewest_images, most, cure)
    if task.num_pictures > most:
        raise ValueError(
            f"{field}: got {most}, but tasks.{name} ({type(task).__name__}) "
            f"has {task.num_pictures} pictures an example; give {task.num_pictures} or more"
        )
    return NumPictures(task.num_pictures, task.num_pictures)


def open_datasets(
    where: str, task: Task, folders: Sequence[str], cache: ShardCache | None = None
) -> list[Dataset]:
    """Open a task's data sets and check that it reads their kind; messages begin with `where`."""
    try:
        datasets = [open_dataset(folder, cache) for folder in folders]
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    for folder, dataset in zip(folders, datasets, strict=True):
        if dataset.kind not in task.kinds:
            raise ValueError(
                f"{where}: {folder} holds samples of kind '{dataset.kind}', {type(task).__name__} "
                f"understands {', '.join(task.kinds)}; name another folder or another task class"
            )
    return datasets


def with_lists(recipe: Recipe) -> Recipe:
    """The recipe with the content of the files of answers and classes that it names: a run keeps
    it.

    Errors: ValueError if a file cannot be read, or a task's classes are unknown.
    """
    tasks = dict(recipe.tasks)
    for name, task in recipe.tasks.items():
        try:
            if task.decoding.answers is not None:
                answers = read_answers(task.decoding.answers)
                task = replace(task, decoding=replace(task.decoding, answers=answers))
            if task.head is not None:
                classes = classes_of(task, recipe.data.shard_cache)
                task = replace(task, head=replace(task.head, classes=classes).with_files())
        except ValueError as error:
            raise ValueError(f"tasks.{name}.{error}") from None
        tasks[name] = task
    return replace(recipe, tasks=tasks)


def classes_of(task: Task, cache: ShardCache | None) -> tuple[str, ...]:
    """The classes of a task's head: as the recipe lists them, from a file, the task's own, or those
    of its data sets.

    Errors: ValueError that begins with the field, if there are none, or data sets differ.
    """
    assert task.head is not None
    given, field = task.head.classes, "head.classes"
    if given is not None:
        return read_classes(given, field) if isinstance(given, str) else given
    if task.labels:
        return task.labels
    folders = list(dict.fromkeys([*task.train, *task.evaluate, *task.test]))
    lists = {folder: open_dataset(folder, cache).info.classes for folder in folders}
    known = {folder: classes for folder, classes in lists.items() if classes is not None}
    if not known:
        raise ValueError(
            f"{field}: the recipe names none, and dataset.json of {folders[0] if folders else '-'} "
            "lists none; give a list, or a JSON file, such as `data_prep answers` writes"
        )
    first, classes = next(iter(known.items()))
    if odd := next((folder for folder, other in known.items() if other != classes), None):
        raise ValueError(
            f"{field}: {first} and {odd} list other classes; give the list that holds for both"
        )
    return check_classes(classes, f"{field}: {first}")
