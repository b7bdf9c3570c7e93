"""Samples of indexed shards: a batch's samples are read by their places, then decoded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count

import numpy as np

from vlds.data.errors import ShardError
from vlds.data.order.permutation import WHOLE_SAMPLE, random_words
from vlds.data.shards.store import Dataset
from vlds.data.streams.assemble import Candidate, OpenBatch, Opened, Place, SampleReader
from vlds.data.streams.source import Source, check_pictures
from vlds.schema import SkipSample


class IndexedReader(SampleReader[Source]):
    """Opens samples by their places, in training and evaluation."""

    def load(self, places: Sequence[Place], batch: OpenBatch) -> None:
        """Read samples, then decode their pictures.

        One after the other, because decoding sweeps all else out of the processor's caches: in
        turns with it, reading takes twice as long.
        """
        undecoded = []
        for source, sample, _ in places:
            dataset, index = self.sources[source].locate(sample)
            key = (str(dataset.folder), index)  # the same for all sources that have the data set
            if key in batch.samples:
                continue
            try:
                batch.samples[key] = self._read(dataset, index, batch)
            except (SkipSample, ShardError) as error:
                damaged = isinstance(error, ShardError)
                batch.samples[key] = Opened(None, fault=str(error), shard_is_damaged=damaged)
                continue
            if self.setup.image is not None and batch.samples[key].fault is None:
                undecoded.append(key)
        for key in undecoded:
            sample_to_decode = batch.samples[key].sample
            assert sample_to_decode is not None
            batch.samples[key] = self._with_images(key, sample_to_decode, batch)

    def _read(self, dataset: Dataset, index: int, batch: OpenBatch) -> Opened:
        """Read a sample, and copy its features to the stack.

        Errors: SkipSample, ShardError.
        """
        fault = dataset.quarantine.get(index)
        if fault and not self.evaluation:
            raise SkipSample(fault)
        sample = dataset.read(index)
        if fault:  # evaluation needs its ids and references
            return Opened(sample, fault=fault)
        check_pictures(dataset.folder, sample, self.setup.image)
        if self.setup.image is not None:
            return Opened(sample)
        # Without its features the next sample is read into the same memory, still in the
        # processor's caches: that saves a third of the time of stored features.
        return Opened(replace(sample, features=()), batch.stack.add(sample.features))

    def candidates(self, position: int, place: Place, batch: OpenBatch) -> Iterator[Candidate]:
        """The sample at a place, then others of its data set; they depend on the position alone."""
        source_index, sample, annotation = place
        source = self.sources[source_index]
        for attempt in count():
            dataset, index = source.locate(sample)
            key = (str(dataset.folder), index)
            self.load([(source_index, sample, annotation)], batch)
            opened = batch.samples[key]
            if opened.shard_is_damaged and self.policy.on_bad_shard == "stop":
                raise ShardError(opened.fault)
            name = opened.sample.key if opened.sample else f"number {index}"
            yield Candidate(dataset.label, dataset.shard_of(index), name, annotation, opened)
            words = random_words(1, self.setup.seed, "substitute", source.name, position, attempt)
            substitute, annotation = _drawn(dataset, int(words[0]), annotation)
            sample += substitute - index


def _drawn(dataset: Dataset, word: int, annotation: int) -> tuple[int, int]:
    """Sample and annotation of a data set that a random word stands for."""
    if annotation == WHOLE_SAMPLE:
        return word % dataset.num_samples, WHOLE_SAMPLE
    ends = np.cumsum(np.concatenate(dataset.counts), dtype=np.int64)
    drawn = word % int(ends[-1])
    sample = int(np.searchsorted(ends, drawn, side="right"))
    return sample, drawn - (int(ends[sample - 1]) if sample else 0)
