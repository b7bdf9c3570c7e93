"""The data that a recipe's tasks learn from and are scored on, opened and checked; and pictures as
Python users have them (`encode_picture`): a path, bytes, a Pillow image or an array."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlds.data.shards.cache import ShardCache
from vlds.data.shards.pictures import MAX_PIXELS, to_rgb, upright
from vlds.data.shards.store import Dataset, few_shots, of_classes, open_dataset
from vlds.data.streams.sequential import StreamedSource, open_streamed
from vlds.data.streams.source import NumPictures, Source
from vlds.models.generation.answer_list import read_answers
from vlds.models.loading.model_files import damaged_source
from vlds.recipe.config import Recipe
from vlds.runtime.files import read_file
from vlds.runtime.ranks import Ranks
from vlds.tasks.base import Split, Task, label_of
from vlds.tasks.class_output import check_classes, read_classes

Picture = str | Path | bytes | bytearray | memoryview | Image.Image | np.ndarray
"""A file, its content, a Pillow image, or a uint8 array of one of SHAPES."""
ACCEPTED = "a path, the bytes of a file, a Pillow image or a uint8 array"
SHAPES = "(height, width), (height, width, 1), (height, width, 3) or (height, width, 4)"
CHANNELS = (1, 3, 4)
WEB_ADDRESS = re.compile(r"[A-Za-z][\w+.-]+:/")
"""Beginning of a URL, also of one that was a Path, which has lost a slash."""
_pillow = Lock()
"""Pillow decodes an image when its pixels are first used, which two threads must not do at once."""


def encode_picture(picture: Picture) -> bytes:
    """The picture as bytes of a file.

    Errors: ValueError for a file that cannot be read, for an array that is not uint8 or has another
    shape than SHAPES, and for what is not a picture, or is too large.
    """
    if isinstance(picture, bytes | bytearray | memoryview):
        return bytes(picture)
    if isinstance(picture, str | Path):
        if WEB_ADDRESS.match(str(picture)):
            raise ValueError(
                f"{picture}: a picture is read from a file of this machine; download it first"
            )
        try:
            return read_file(path_of("picture", picture))
        except OSError as error:
            raise ValueError(f"{picture}: {error.strerror}") from None
    if isinstance(picture, np.ndarray):
        shape = picture.shape
        last = shape[2:]
        if picture.dtype != np.uint8 or not (len(shape) == 2 or last in [(n,) for n in CHANNELS]):
            channels_first = len(shape) == 3 and shape[0] in CHANNELS and shape[2] not in CHANNELS
            cure = "; are its channels first? then give array.transpose(1, 2, 0)"
            raise ValueError(
                f"picture: got an array of {picture.dtype} and shape {shape}; give uint8, "
                f"{SHAPES}{cure if channels_first else ''}"
            )
        check_size(shape[1], shape[0])
        return png_of(picture[..., 0] if last == (1,) else picture)  # Pillow takes (h, w) for grey
    if not isinstance(picture, Image.Image):
        raise ValueError(f"picture: got {type(picture).__name__}; give {ACCEPTED}")
    check_size(*picture.size)
    try:
        with _pillow:
            # PNG has no CMYK and the like, and decoders see a file's pixels this way too.
            pixels = np.asarray(to_rgb(upright(picture)))
    except Exception as error:  # decoders raise whatever damaged bytes lead them to
        raise ValueError(
            f"picture: the Pillow image is closed, truncated or damaged ({error}); open it again"
        ) from None
    return png_of(pixels)


def check_size(width: int, height: int) -> None:
    """Errors: ValueError for a picture without pixels, or with more than files may have."""
    if not 0 < width * height <= MAX_PIXELS:
        raise ValueError(
            f"picture: is {width} wide and {height} high; give at least one pixel and at most "
            f"{MAX_PIXELS:,}"
        )


def png_of(pixels: NDArray[np.uint8]) -> bytes:
    """An array as a PNG with the same pixels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)  # it is read once, at once
    return buffer.getvalue()


def path_of(argument: str, value: object) -> Path:
    """An argument as a path, from all that Python's own functions take for one but bytes.

    Errors: ValueError if it is not one.
    """
    given = type(value).__name__
    value = value if isinstance(value, str) else getattr(value, "__fspath__", lambda: None)()
    if not isinstance(value, str):
        raise ValueError(f"{argument}: got {given}; give a path, as str or Path")
    if value == "":
        raise ValueError(f"{argument}: the path is empty; name a file or folder")
    try:
        valid = b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        valid = False
    if not valid:
        raise ValueError(f"{argument}: no file can have the name {str(value)!r:.200}")
    return Path(value)


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
    """`training_sources` for the sequential reader, which needs no index."""
    check_train_data(recipe)
    if unknown := sorted(set(recipe.data.fields) - set(recipe.tasks)):
        raise ValueError(
            f"data.fields: no task is called {unknown[0]}; the tasks are {', '.join(recipe.tasks)}"
        )
    sources = []
    for name, task in recipe.tasks.items():
        # Any two classes show whether the task keeps all of them.
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
    # A task may be about some classes: samples of the others are not there for it.
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
    # All that the task reads: a class that only test data have would have no number.
    folders = list(dict.fromkeys([*task.train, *task.evaluate, *task.test]))
    lists = {folder: open_dataset(folder, cache).info.classes for folder in folders}
    known = {folder: classes for folder, classes in lists.items() if classes is not None}
    if not known:
        raise ValueError(
            f"{field}: the recipe names none, and dataset.json of {folders[0] if folders else '-'} "
            "lists none; give a list, or a JSON file, such as `vlds data answers` writes"
        )
    first, classes = next(iter(known.items()))
    if odd := next((folder for folder, other in known.items() if other != classes), None):
        raise ValueError(
            f"{field}: {first} and {odd} list other classes; give the list that holds for both"
        )
    return check_classes(classes, f"{field}: {first}")


def check_frozen_files(recipe: Recipe, ranks: Ranks) -> None:
    """Compare frozen weights and tokenizers in folders that vlds wrote with their hashes, on one
    rank of each machine. Collective.

    Errors: ValueError on all ranks that names the folder and the file.
    """
    # One rank a machine: its ranks read the same disk, and hashing takes all of it. The others
    # take part with nothing, because gathering is collective.
    files = dict.fromkeys(recipe.model.read_files)
    # Lazy: hashing ends with the first damaged file.
    problems = map(damaged_source, files) if ranks.local_rank == 0 else ()
    gathered = ranks.gather(next(filter(None, problems), None)) or []
    if (problem := ranks.broadcast(next(filter(None, gathered), None))) is not None:
        raise ValueError(problem)
