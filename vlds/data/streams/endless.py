"""What a loader process of the sequential reader does: shards without end -> batches."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch.utils.data
import webdataset

from vlds.data.errors import BadSample, ErrorPolicy, ShardError
from vlds.data.order.mixture import MixedOrder
from vlds.data.order.randomness import Draws, Recent, permutation
from vlds.data.shards.decode import PictureCache, decode_pictures
from vlds.data.streams.assemble import Parcel, require_target
from vlds.data.streams.collate import ImageStack, Row, collate
from vlds.data.streams.streamed_source import StreamedDataset, StreamedSource
from vlds.runtime.credentials import without_credentials
from vlds.schema import ImageSpec, Sample, SkipSample
from vlds.tasks.base import ask


@dataclass(frozen=True)
class Options:
    """What all processes have in common."""

    tokenizer: Any
    image: ImageSpec | None
    policy: ErrorPolicy
    seed: int
    num_workers: int
    """Processes of each rank."""
    shuffle_buffer: int
    cache_bytes: int


@dataclass(frozen=True)
class Start:
    """Where a stream begins, on which rank."""

    position: int
    world_size: int
    global_rank: int


@dataclass(frozen=True)
class Drawn:
    """What came out of the shards: an example, or damage in its place."""

    dataset: StreamedDataset
    url: str
    key: str
    sample: Sample | None
    annotation: int = 0
    reason: str = ""


class Shown(NamedTuple):
    """The images of a batch, each once, however many of its examples ask about it."""

    stack: ImageStack
    numbers: dict[tuple[str, str], range]
    """URL of the shard and key of the sample -> numbers of its images."""


class EndlessReader:
    """Every n-th of a source's shards, pass after pass, each in a new permutation."""

    def __init__(
        self, source: StreamedSource, options: Options, start: Start, process: int
    ) -> None:
        """`process`: number of this one among those of all ranks."""
        self.source = source
        self.policy = options.policy
        self._key = options.seed, "sequential", source.name, start.position
        self._first = process
        self._step = start.world_size * options.num_workers
        self._order = Recent(lambda number: permutation(len(source.shards), *self._key, number))

    def examples(self) -> Iterator[Drawn]:
        """For ever. Damage stops the run, or is one of them, as the policy says.

        Errors: ShardError.
        """
        num_empty, fault = 0, "it is empty"
        for turn in count(self._first, self._step):
            num_empty += 1
            number, place = divmod(turn, len(self.source.shards))
            dataset, url = self.source.shards[self._order(number)[place]]
            shown = without_credentials(url)
            try:
                for drawn in self._of_shard(dataset, url):
                    num_empty = 0
                    yield drawn
            except ShardError as error:
                if self.policy.on_bad_shard == "stop":
                    raise
                fault = str(error)
                yield Drawn(dataset, shown, "the shard", None, reason=fault)
            if num_empty > max(len(self.source.shards), self.policy.max_in_a_row):
                raise ShardError(
                    f"source {self.source.name}: {num_empty} shards, one after the other, gave no "
                    f"example, such as {shown} ({fault}); look at what they hold"
                )

    def _of_shard(self, dataset: StreamedDataset, url: str) -> Iterator[Drawn]:
        shown = without_credentials(url)
        for key, sample in self.source.read(dataset, url):
            if isinstance(sample, SkipSample):
                yield Drawn(dataset, shown, key, None, reason=str(sample))
                continue
            for annotation in range(len(sample.annotations)):
                yield Drawn(dataset, shown, key, sample, annotation)


class SequentialAssembler(torch.utils.data.Dataset[Parcel]):
    """Makes batches of what comes next in the shards of the process that it is in."""

    def __init__(
        self,
        sources: Sequence[StreamedSource],
        order: MixedOrder,
        options: Options,
        start: Start,
    ) -> None:
        """`start`: its rank is the one that the processes belong to."""
        self.sources = sources
        self.order = order
        self.options = options
        self.start = start
        self._cache = PictureCache(options.cache_bytes)
        self._draws = Draws(options.seed)
        self._shuffled: dict[int, Iterator[Drawn]] = {}

    def __getitems__(self, positions: list[int]) -> Parcel:
        """The batch of these positions."""
        parcel = Parcel(positions)
        numbers, _, _ = self.order.at(np.array(positions, np.int64))
        shown = Shown(ImageStack(len(positions)), {})
        rows = []
        try:
            for position, number in zip(positions, numbers.tolist(), strict=True):
                row = self._row(position, number, shown, parcel.bad)
                if row is None:
                    return parcel
                rows.append(row)
            parcel.batch = collate(
                rows,
                shown.stack,
                self.options.tokenizer,
                features=self.options.image is None,
                evaluation=False,
            )
        except ValueError as error:  # ShardError is one
            parcel.error = error
        return parcel

    def _row(self, position: int, number: int, shown: Shown, bad: list[BadSample]) -> Row | None:
        """The next example of a source that is whole; None where too many in a row are not."""
        source = self.sources[number]
        for attempt in range(self.options.policy.max_in_a_row + 1):
            drawn = next(self._examples(number))
            sample, fault = drawn.sample, drawn.reason
            try:
                if sample is not None:
                    images = self._images(drawn, sample, shown)
                    rng = self._draws.at(position, attempt)
                    example = ask(source.task, source.name, sample, drawn.annotation, rng)
                    require_target(source.name, example, sample)
                    return Row(
                        example=example,
                        task_index=number,
                        max_prompt_tokens=source.task.max_prompt_tokens,
                        max_target_tokens=source.task.max_target_tokens,
                        images=images,
                    )
            except SkipSample as error:
                fault = str(error)
            bad.append(
                BadSample(
                    position=position,
                    dataset=drawn.dataset.label,
                    shard=drawn.url,
                    key=drawn.key,
                    id=sample.id if sample else "",
                    reason=fault,
                )
            )
        return None

    def _images(self, drawn: Drawn, sample: Sample, shown: Shown) -> range:
        key = (drawn.url, drawn.key)
        if key not in shown.numbers:
            shown.numbers[key] = shown.stack.add(self._pixels(key, sample))
        return shown.numbers[key]

    def _pixels(self, key: tuple[str, str], sample: Sample) -> Sequence[np.ndarray]:
        if self.options.image is None:
            return sample.features
        if (pictures := self._cache.get(key)) is None:
            pictures = decode_pictures(sample, self.options.image)
            self._cache.put(key, pictures)
        return pictures

    def _examples(self, number: int) -> Iterator[Drawn]:
        """A source's examples in this process, for ever, shuffled by webdataset."""
        if number not in self._shuffled:
            source, options = self.sources[number], self.options
            worker = torch.utils.data.get_worker_info()
            process = self.start.global_rank * options.num_workers + (worker.id if worker else 0)
            reader = EndlessReader(source, options, self.start, process)
            seed = f"{options.seed}/{source.name}/{self.start.position}/{process}"
            self._shuffled[number] = iter(
                webdataset.DataPipeline(
                    reader.examples,
                    webdataset.shuffle(options.shuffle_buffer, rng=random.Random(seed)),
                )
            )
        return self._shuffled[number]
