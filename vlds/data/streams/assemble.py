"""From positions of a stream to batches, in any process.

A position names an example. Its sample is opened, with the distinct images of the batch in one
store; the task asks about it; a bad sample is recorded and replaced; the collator makes a batch of
the rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Generic, NamedTuple, TypeAlias

import numpy as np
import torch
import torch.utils.data
from torch import Tensor

from vlds.data.errors import BadSample, ErrorPolicy
from vlds.data.order.epoch_order import Draws
from vlds.data.order.mixed_order import BatchCut, MixedOrder
from vlds.data.shards.pictures import PictureCache, decode_pictures
from vlds.data.streams.loader import Parcel
from vlds.data.streams.source import AnySource, EvalOrder, TaskSource, fixed_example
from vlds.runtime.terminal import Away
from vlds.schema import (
    Collator,
    Images,
    NaturalSize,
    PictureSpec,
    RefusedRows,
    Row,
    Sample,
    SkipSample,
)
from vlds.tasks.base import ask


class ImageStack:
    """The distinct images of a batch: decoded pictures (3, h, w), or stored features of v visual
    tokens (v, dim). An image that several examples ask about is stored once. Images of one shape
    stand in one array, pictures of natural size in a list."""

    def __init__(self, num_images: int, image: PictureSpec | None = None) -> None:
        """`num_images`: a guess of how many will be added; `image`: None for features."""
        self._guess = num_images
        self._pictures: list[Tensor] | None = [] if isinstance(image, NaturalSize) else None
        self._array: np.ndarray | None = None
        self._num_images = 0

    def __len__(self) -> int:
        return self._num_images

    def add(self, images: Sequence[np.ndarray]) -> range:
        """Put the images of a sample on the stack and return their indices.

        Errors: ValueError for features of different shapes in one batch.
        """
        first = self._num_images
        if self._pictures is not None:
            self._pictures += map(torch.from_numpy, images)
            self._num_images = len(self._pictures)
            return range(first, self._num_images)
        for image in images:
            # One array from the beginning: stacking a list at the end would copy every image again.
            if self._array is None:
                self._array = np.empty((self._guess, *image.shape), image.dtype)
            elif image.shape != self._array.shape[1:]:
                raise ValueError(
                    f"stored features of different shapes in one batch: {self._array.shape[1:]}, "
                    f"{image.shape}; compute them with one encoder and one image size"
                )
            elif self._num_images == len(self._array):  # the guess was low: double it
                self._array = np.concatenate([self._array, np.empty_like(self._array)])
            self._array[self._num_images] = image
            self._num_images += 1
        return range(first, self._num_images)

    def images(self) -> Images:
        """(u, ...) of the u distinct images, sharing the stack's memory, or the list of pictures;
        None without images of one shape."""
        if self._pictures is not None:
            return self._pictures
        return None if self._array is None else torch.from_numpy(self._array[: self._num_images])


Place: TypeAlias = tuple[int, int, int]
"""Indices of the source, of the sample in it, and of the annotation in that."""


@dataclass(frozen=True, kw_only=True)
class StreamSetup:
    """What a stream needs to know of its run, besides the recipe's `data`."""

    collator: Collator
    image: PictureSpec | None
    """None: the model reads stored features."""
    seed: int = 0
    """Decides the order and the tasks' draws; evaluation draws nothing."""
    cut: BatchCut = field(default_factory=BatchCut)
    global_rank: int = 0
    worker_timeout: float = 0.0
    """Seconds that a worker may take for a batch; 0: any number."""
    ledger: Path | None = None
    """File that lists bad samples."""
    blank_images: bool = False
    """Replace pictures by plain grey, and features by zeros."""
    picture_cache_bytes: int = 128 << 20
    """Decoded pictures that each process keeps in training: small data sets are decoded once."""


class Opened(NamedTuple):
    """A sample that was read for a batch."""

    sample: Sample | None
    """None if not even its text could be read."""
    images: range = range(0)
    """Indices in the stack of the batch."""
    fault: str | None = None
    """Why the sample cannot be used. Only text: an error would keep every frame that it passed, and
    with them the memory of the batch, until the garbage collector comes."""
    shard_is_damaged: bool = False


class Candidate(NamedTuple):
    """A sample that may stand at a position, and where it comes from."""

    dataset: str
    """Label of the data set."""
    shard: str
    key: str
    annotation: int
    opened: Opened


@dataclass
class Slot:
    """A position of a batch, and the samples that may fill it."""

    position: int
    source_index: int
    candidates: Iterator[tuple[int, Candidate]]
    """Numbered from 0; those tried before are gone."""
    current: Candidate | None = None
    """The one tried last."""
    first_bad: BadSample | None = None


@dataclass
class OpenBatch:
    """What was opened for one batch: each sample is read and decoded once."""

    stack: ImageStack
    samples: dict[Hashable, Opened] = field(default_factory=dict)


class SampleReader(ABC, Generic[AnySource]):
    """Opens the samples of batches; each process has its own."""

    def __init__(
        self,
        sources: Sequence[AnySource],
        policy: ErrorPolicy,
        setup: StreamSetup,
        *,
        evaluation: bool = False,
    ) -> None:
        """`evaluation`: nothing is drawn, and rows that replace bad samples do not count."""
        self.sources = sources
        self.policy = policy
        self.setup = setup
        self.evaluation = evaluation
        self._cache = PictureCache(0 if evaluation else setup.picture_cache_bytes)

    @abstractmethod
    def load(self, places: Sequence[Place], batch: OpenBatch) -> None:
        """Open the samples of a batch at once, as far as they are known beforehand."""

    def expect(self, places: Sequence[Place]) -> None:
        """Prepare to open samples that a later batch will need."""

    @abstractmethod
    def candidates(self, position: int, place: Place, batch: OpenBatch) -> Iterator[Candidate]:
        """The sample of a position, then its substitutes, without end.

        Errors: ShardError for a damaged shard, if these stop the run.
        """

    def _with_images(self, key: Hashable, sample: Sample, batch: OpenBatch) -> Opened:
        """Put the images of a sample on the stack of the batch."""
        if (image := self.setup.image) is None:
            return Opened(sample, batch.stack.add(self.shown(sample.features)))
        try:
            # The batch may share the cache's arrays: nobody writes to them.
            pictures = self._cache.get(
                key, lambda: tuple(self.shown(decode_pictures(sample, image)))
            )
        except SkipSample as error:
            return Opened(sample, fault=str(error))
        return Opened(sample, batch.stack.add(pictures))

    def shown(self, images: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """The images, or blank ones of the same sizes."""
        if not self.setup.blank_images:
            return images
        # Pixels are bytes, 128 is mid-grey; features are floats, whose middle is 0.
        return [np.full_like(each, 128 if each.dtype == np.uint8 else 0) for each in images]


class Assembler(torch.utils.data.Dataset[Parcel]):
    """Makes batches of positions, for training, evaluation, and every way to read."""

    def __init__(
        self,
        reader: SampleReader[TaskSource[object]],
        order: MixedOrder | EvalOrder,
        first_task: int = 0,
        ahead: int = 0,
    ) -> None:
        """`first_task`: index of the first source's task in the recipe. `ahead`: how many positions
        later samples are to be expected; 0: none."""
        self.reader = reader
        self.order = order
        self.ahead = ahead
        self.first_task = first_task
        self._draws = Draws(reader.setup.seed)
        self._num_images = 0
        """Most images of a batch so far."""

    def __getitems__(self, positions: list[int]) -> Parcel:
        """The batch of these positions."""
        setup = self.reader.setup
        parcel = Parcel(positions)
        batch = OpenBatch(ImageStack(max(len(positions), self._num_images), setup.image))
        most = self.reader.policy.max_in_a_row + 1
        slots, rows = [], []
        try:
            places = self._places(positions)
            # Candidates are lazy: substitutes are read only if they are needed.
            for position, place in zip(positions, places, strict=True):
                candidates = self.reader.candidates(position, place, batch)
                slots.append(Slot(position, place[0], enumerate(islice(candidates, most))))
            if self.ahead:
                self.reader.expect(self._places([position + self.ahead for position in positions]))
            self.reader.load(places, batch)
            for slot in slots:
                row = self._row(slot, parcel.bad)
                if row is None:
                    return parcel
                rows.append(row)
            # The next batch's stack gets this room at once: growing copies all images.
            self._num_images = max(self._num_images, len(batch.stack))
            while parcel.batch is None:
                # Again in each round: a substitute's images may have moved the stack's memory.
                images = batch.stack.images()
                try:
                    parcel.batch = setup.collator(rows, images, evaluation=self.reader.evaluation)
                except RefusedRows as refused:
                    # Some pictures show only to the collator that they cannot be read.
                    for index, reason in refused.reasons.items():
                        slot = slots[index]
                        assert slot.current is not None
                        opened = slot.current.opened._replace(fault=reason)
                        slot.current = slot.current._replace(opened=opened)
                        self._reject(slot, reason, parcel.bad)
                        row = self._row(slot, parcel.bad)
                        if row is None:
                            return parcel
                        rows[index] = row
        except (ValueError, Away) as error:  # ShardError is one
            parcel.error = error
        return parcel

    def _places(self, positions: list[int]) -> list[Place]:
        # Three columns (source, sample, annotation) become one place for each position.
        columns = self.order.at(np.array(positions, np.int64))
        return list(zip(*(column.tolist() for column in columns), strict=True))

    def _row(self, slot: Slot, bad: list[BadSample]) -> Row | None:
        """The next example of a slot; None if too many are bad.

        Errors: ValueError in training for an example without a target.
        """
        source, evaluation = self.reader.sources[slot.source_index], self.reader.evaluation
        for attempt, candidate in slot.candidates:
            slot.current = candidate
            sample, images, fault, _ = candidate.opened
            try:
                if sample is None or fault is not None:
                    raise SkipSample(fault)
                if evaluation:
                    example = fixed_example(source, candidate.dataset, sample, candidate.annotation)
                else:
                    # By position and attempt, so that what a task draws does not depend on ranks
                    # and workers.
                    rng = self._draws.at(slot.position, attempt)
                    if num := source.task.num_others(evaluation=False):
                        sample = source.beside(sample, rng.random(num).tolist())
                    example = ask(source.task, source.name, sample, candidate.annotation, rng)
            except SkipSample as error:
                self._reject(slot, str(error), bad)
                continue
            if example.target is None and not evaluation:
                raise ValueError(
                    f"source {source.name}: example {example.id} of data set {sample.dataset} has "
                    "no target; it cannot be trained on: name a split with labels"
                )
            first_bad = slot.first_bad
            if first_bad and evaluation:
                # Another example's text and picture fill the row, but not under its id.
                name = first_bad.id or f"{first_bad.dataset}/{first_bad.key}"
                example = replace(example, id=name)
            return Row(
                example=example,
                task_index=self.first_task + slot.source_index,
                max_prompt_tokens=source.task.max_prompt_tokens,
                max_target_tokens=source.task.max_target_tokens,
                images=images,
                valid=first_bad is None or not evaluation,
            )
        return None

    def _reject(self, slot: Slot, reason: str, bad: list[BadSample]) -> None:
        """Record a slot's current candidate as bad."""
        candidate = slot.current
        assert candidate is not None
        sample, _, fault, _ = candidate.opened
        entry = BadSample(
            position=slot.position,
            dataset=candidate.dataset,
            shard=candidate.shard,
            key=candidate.key,
            id=sample.id if sample else "",
            reason=reason,
        )
        if sample is not None and fault is not None and self.reader.evaluation:
            # Only its pictures are missing: the score still needs its reference.
            source = self.reader.sources[slot.source_index]
            asked = fixed_example(source, candidate.dataset, sample, candidate.annotation)
            entry = replace(entry, id=asked.id, reference=asked.reference, sample=asked.sample)
        bad.append(entry)
        # Evaluation names the example that should stand here, not a substitute that is bad as well.
        slot.first_bad = slot.first_bad or entry
