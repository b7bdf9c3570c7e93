"""The streams of indexed shards that training and evaluation read, and how they open samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np

from vlds.data.config import DataConfig
from vlds.data.errors import BadSample, ErrorPolicy, ShardError
from vlds.data.order.epoch_order import EpochOrder
from vlds.data.order.permutation import WHOLE_SAMPLE, hashed, random_words
from vlds.data.shards.store import Dataset
from vlds.data.streams.assemble import (
    Assembler,
    Candidate,
    OpenBatch,
    Opened,
    Place,
    SampleReader,
    StreamSetup,
)
from vlds.data.streams.eval_order import EvalOrder
from vlds.data.streams.loader import parcels
from vlds.data.streams.mixed_stream import MixedStream
from vlds.data.streams.source import Source, check_pictures
from vlds.schema import Batch, SkipSample

MOST_NAMED = 4
"""Data sets that a state names one by one; of more it says only whether a task's are the same."""


class TrainStream(MixedStream):
    """Indexed shards: any number of ranks and workers reads the same global batches."""

    def __init__(self, sources: Sequence[Source], config: DataConfig, setup: StreamSetup) -> None:
        """Check everything; read the first sample of each data set."""
        names = [source.name for source in sources]
        if not sources or len(set(names)) < len(names):
            raise ValueError(f"sources {names}: give at least one, each with a different name")
        for source in sources:
            source.check(setup.image)
        orders = [
            EpochOrder(
                source.name,
                source.counts,
                seed=setup.seed,
                window=config.window,
                group=config.group,
                lanes=config.lanes,
            )
            for source in sources
        ]
        super().__init__(sources, orders, config, setup)
        self.sources = list(sources)
        self._indexed_reader = IndexedReader(sources, config.errors, setup)

    def _reader(self) -> IndexedReader:
        return self._indexed_reader

    def fingerprint(self) -> dict[str, Any]:
        """What the order depends on; a state is of use only where this is the same."""
        data: dict[str, Any] = {
            source.name: {dataset.label: dataset.fingerprint() for dataset in source.datasets}
            for source in self.sources
        }
        if sum(map(len, data.values())) > MOST_NAMED:
            data = {name: hashed(prints) for name, prints in data.items()}
        return {"order": self.order.fingerprint(), "data": data}


class EvalStream:
    """One rank's part of an evaluation: some of its batches, whatever the number of ranks."""

    def __init__(
        self,
        source: Source,
        order: EvalOrder,
        setup: StreamSetup,
        *,
        num_workers: int = 0,
        task_index: int = 0,
    ) -> None:
        """`task_index`: of the task in the recipe."""
        source.check(setup.image)
        self.bad: list[BadSample] = []
        """Examples of this rank that could not be read, as of the last iteration."""
        reader = IndexedReader([source], ErrorPolicy(), setup, evaluation=True)
        self._assembler = Assembler(reader, order, first_task=task_index)
        self._batches = order.batches[setup.global_rank :: setup.cut.world_size]
        self._num_workers = num_workers
        self._worker_timeout = setup.worker_timeout

    def __len__(self) -> int:
        """Batches of this rank."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        self.bad = []
        num_workers, timeout = self._num_workers, self._worker_timeout
        with closing(parcels(self._assembler, self._batches, num_workers, timeout)) as loaded:
            for parcel in loaded:
                first_bad: dict[int, BadSample] = {}  # a bad substitute adds no entry
                for entry in parcel.bad:
                    first_bad.setdefault(entry.position, entry)
                self.bad += first_bad.values()
                yield parcel.unpack()


class IndexedReader(SampleReader[Source]):
    """Opens samples by their places, in training and evaluation."""

    def load(self, places: Sequence[Place], batch: OpenBatch) -> None:
        """Read samples, then decode their pictures.

        All reads come before all decoding, which evicts everything else from the processor's
        caches: alternating, reading takes twice as long.
        """
        undecoded = []
        for source, source_sample, _ in places:
            dataset, index = self.sources[source].locate(source_sample)
            key = (dataset.key, index)  # the same for all sources that have the data set
            if key not in batch.samples:
                opened = batch.samples[key] = self._read(dataset, index, batch)
                if self.setup.image is not None and opened.sample and not opened.fault:
                    undecoded.append((key, opened.sample))
        for key, sample in undecoded:
            batch.samples[key] = self._with_images(key, sample, batch)

    def _read(self, dataset: Dataset, index: int, batch: OpenBatch) -> Opened:
        """Read a sample, and copy its features to the stack."""
        fault = dataset.quarantine.get(index)
        if fault and not self.evaluation:
            return Opened(None, fault=fault)
        try:
            sample = dataset.read(index)
        except (SkipSample, ShardError) as error:
            damaged = isinstance(error, ShardError)
            return Opened(None, fault=str(error), shard_is_damaged=damaged)
        if fault:  # evaluation needs its ids and references
            return Opened(sample, fault=fault)
        check_pictures(dataset.folder, sample, self.setup.image)
        if self.setup.image is not None:
            return Opened(sample)
        # Without its features the next sample is read into the same memory, still in the
        # processor's caches: that saves a third of the time of stored features.
        return Opened(replace(sample, features=()), batch.stack.add(self.shown(sample.features)))

    def candidates(self, position: int, place: Place, batch: OpenBatch) -> Iterator[Candidate]:
        """The sample at a place, then others of its data set; they depend on the position alone."""
        source_index, sample, annotation = place
        source = self.sources[source_index]
        for attempt in count():
            dataset, index = source.locate(sample)
            self.load([(source_index, sample, annotation)], batch)
            opened = batch.samples[dataset.key, index]
            if opened.shard_is_damaged and self.policy.on_bad_shard == "stop":
                raise ShardError(opened.fault)
            name = opened.sample.key if opened.sample else f"number {index}"
            yield Candidate(dataset.label, dataset.shard_of(index), name, annotation, opened)
            words = random_words(1, self.setup.seed, "substitute", source.name, position, attempt)
            substitute, annotation = _drawn(dataset, int(words[0]), annotation)
            sample += substitute - index


def _drawn(dataset: Dataset, word: int, annotation: int) -> tuple[int, int]:
    """Map a random word to a sample and an annotation of a data set."""
    if annotation == WHOLE_SAMPLE:
        return word % dataset.num_samples, WHOLE_SAMPLE
    ends = np.cumsum(np.concatenate(dataset.counts), dtype=np.int64)
    drawn = word % int(ends[-1])
    sample = int(np.searchsorted(ends, drawn, side="right"))
    return sample, drawn - (int(ends[sample - 1]) if sample else 0)
