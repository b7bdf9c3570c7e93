"""Packed data as an ordinary torch data set: `vlds.dataset`."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Generic, TypeVar, cast, overload

import numpy as np
import torch.utils.data
from PIL import Image

import vlds.tasks
from vlds.data.errors import ShardError
from vlds.data.order.epoch_order import WHOLE_SAMPLE
from vlds.data.shards.pictures import MAX_PIXELS, decode_pictures
from vlds.data.shards.remote import is_url
from vlds.data.streams.source import Source, fixed_example
from vlds.evaluation.sources import open_datasets, path_of
from vlds.runtime.checks import guess
from vlds.schema import Example, NaturalSize, SkipSample
from vlds.tasks.base import Task

T = TypeVar("T", covariant=True)
AS_STORED = NaturalSize(max_pixels=MAX_PIXELS)


@dataclass(frozen=True)
class Item:
    """One example with its pictures."""

    id: str
    pictures: list[Image.Image]
    """RGB, upright, in the size in which they are stored; empty for data of stored features."""
    question: str
    """The question, statement or the like, as `Model.answer` takes it; "" if the task has none."""
    answer: str | None
    """The best answer, or the first caption; None if the data have no labels, and for tasks whose
    answers are classes of a head."""
    example: Example
    """All that the task makes of the annotation: prompt, reference, turns of a conversation."""
    features: tuple[np.ndarray, ...] = ()
    """Stored features, float16 (tokens, dim) of each picture."""


class Examples(torch.utils.data.Dataset[T], Generic[T]):
    """The examples of data sets, by number and in their order. A `DataLoader` shuffles them, and
    its workers may read them."""

    def __init__(self, source: Source, transform: Callable[[Item], T] | None) -> None:
        self._source, self._transform = source, transform
        self._counts = source.counts
        if source.task.unit == "sample":
            self._counts = np.ones_like(self._counts)
        self._ends = np.cumsum(self._counts)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, number: int) -> T:
        """Errors: IndexError beyond the last example; ValueError for one that cannot be read."""
        size = len(self)
        place = range(size)[number]  # an IndexError, or the place of a negative number
        sample_index = bisect_right(self._ends, place)
        dataset, index = self._source.locate(sample_index)
        annotation = place - int(self._ends[sample_index] - self._counts[sample_index])
        if self._source.task.unit == "sample":
            annotation = WHOLE_SAMPLE
        try:
            sample = dataset.read(index)
            example = fixed_example(self._source, dataset.label, sample, annotation)
            arrays = decode_pictures(sample, AS_STORED)
        except (SkipSample, ShardError) as error:
            raise ValueError(f"example {place} of {dataset.folder}: {error}") from None
        # From (3, h, w), as models read them, to Pillow's (h, w, 3).
        pictures = [Image.fromarray(array.transpose(1, 2, 0)) for array in arrays]
        given = {} if annotation == WHOLE_SAMPLE else sample.annotations[annotation]
        field = self._source.task.input_field
        question = str(given.get(field, "")) if field is not None else ""
        item = Item(example.id, pictures, question, example.target, example, sample.features)
        return cast(T, item) if self._transform is None else self._transform(item)

    def __iter__(self) -> Iterator[T]:
        return (self[number] for number in range(len(self)))


@overload
def dataset(
    shards: str | PathLike[str] | Sequence[str | PathLike[str]],
    task: str | Task,
    *,
    transform: None = None,
) -> Examples[Item]: ...


@overload
def dataset(
    shards: str | PathLike[str] | Sequence[str | PathLike[str]],
    task: str | Task,
    *,
    transform: Callable[[Item], T],
) -> Examples[T]: ...


def dataset(
    shards: str | PathLike[str] | Sequence[str | PathLike[str]],
    task: str | Task,
    *,
    transform: Callable[[Item], object] | None = None,
) -> Examples[Item] | Examples[object]:
    """Packed data as a torch data set of `Item`s: one for each question, or for each picture with
    all its captions, as evaluation counts them. `shards`: a folder or URL, or a list of them;
    `task`: the name of a class of vlds.tasks, such as "VQA", or an object of one. `transform` makes
    what a `DataLoader` is to collate of each item, such as tensors.

    Errors: ValueError for a folder without data, data of another kind, and an unknown task.
    """
    if isinstance(task, str):
        names = [name for name in vlds.tasks.__all__ if name != Task.__name__]
        if task not in names:
            known = ", ".join(names)
            raise ValueError(f"task: got {task!r:.100}; {guess(task, names)}known are {known}")
        task = cast(Task, getattr(vlds.tasks, task)())
    if not isinstance(task, Task):
        raise ValueError(
            f"task: got {task!r:.100}; give the name of a task, such as 'VQA', or an object of one"
        )
    if transform is not None and not callable(transform):
        raise ValueError(f"transform: got {type(transform).__name__}; give a function of an Item")
    folders = [shards] if isinstance(shards, str | PathLike) else shards
    if not isinstance(folders, Sequence) or not folders:
        raise ValueError(f"shards: got {shards!r:.100}; give a folder, or a list of folders")
    places = [str(f) if is_url(str(f)) else str(path_of("shards", f)) for f in folders]
    source = Source(type(task).__name__, task, open_datasets("shards", task, places))
    if not source.num_annotations:
        raise ValueError(f"shards: {', '.join(places)} hold no annotations")
    return Examples(source, transform)
