"""The sequential reader: webdataset's way to read shards, from the first byte to the last.

For shards that are unindexed or stream-only. The shards of a source are permuted in every pass, and
passes follow one another without end; with n loader processes on all ranks, process k opens every
n-th shard of that sequence. So no process waits for another or runs dry, even with fewer shards
than processes: all ranks have equally many batches. The mixture says which task stands at which
position, as for indexed shards. Which of the task's examples comes there depends on the number of
processes, and a resumed stream begins new shards.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import chain, count, islice
from typing import Any

import torch.utils.data
import webdataset

from vlds.data.config import DataConfig
from vlds.data.errors import ShardError
from vlds.data.order.epoch_order import NamedOrder
from vlds.data.order.permutation import permutation
from vlds.data.streams.assemble import (
    Candidate,
    OpenBatch,
    Opened,
    Place,
    SampleReader,
    StreamSetup,
)
from vlds.data.streams.mixed_stream import MixedStream
from vlds.data.streams.streamed_source import StreamedDataset, StreamedSource
from vlds.runtime.credentials import without_credentials
from vlds.schema import SkipSample


class SequentialStream(MixedStream):
    """Shards as they come; `notice` says what is weaker than in TrainStream."""

    notice = (
        "data.reader sequential: shards are split over ranks and workers, so the order of examples "
        "depends on their number; --resume begins new shards; epochs are not exact. For all of "
        "these: `python -m data_prep index` and data.reader indexed"
    )

    def __init__(
        self, sources: Sequence[StreamedSource], config: DataConfig, setup: StreamSetup
    ) -> None:
        """Check everything; read the first sample of each data set."""
        for source in sources:
            source.check(setup.image, config.errors)
        about = {"shuffle_buffer": config.shuffle_buffer}
        orders = [NamedOrder(source.name, source.num_annotations, about) for source in sources]
        super().__init__(sources, orders, config, setup)
        self.sources = list(sources)

    def _reader(self) -> StreamedReader:
        return StreamedReader(self.sources, self.config, self.setup, self.consumed)

    def fingerprint(self) -> dict[str, Any]:
        """The mixture and the lists of shards."""
        data = {source.name: source.fingerprint() for source in self.sources}
        return {"reader": "sequential", "order": self.order.fingerprint(), "data": data}


class StreamedReader(SampleReader[StreamedSource]):
    """What comes next in the shards of the process that it is in."""

    def __init__(
        self,
        sources: Sequence[StreamedSource],
        config: DataConfig,
        setup: StreamSetup,
        start: int,
    ) -> None:
        """`start`: position at which the stream begins."""
        super().__init__(sources, config.errors, setup)
        self.config, self.start = config, start
        self._shuffled: dict[int, Iterator[Candidate]] = {}

    def load(self, places: Sequence[Place], batch: OpenBatch) -> None:
        """Nothing: which samples come next is not known."""

    def candidates(self, position: int, place: Place, batch: OpenBatch) -> Iterator[Candidate]:
        """What comes next in the shards of the position's source."""
        for candidate in self._examples(place[0]):
            if (sample := candidate.opened.sample) is not None:
                key = (candidate.shard, candidate.key)
                if key not in batch.samples:
                    batch.samples[key] = self._with_images(key, sample, batch)
                candidate = candidate._replace(opened=batch.samples[key])
            yield candidate

    def _examples(self, source_index: int) -> Iterator[Candidate]:
        """A source's examples in this process, without end, shuffled by webdataset."""
        if source_index not in self._shuffled:
            source = self.sources[source_index]
            worker = torch.utils.data.get_worker_info()
            num_workers = max(1, self.config.num_workers)
            process = self.setup.global_rank * num_workers + (worker.id if worker else 0)
            seed = f"{self.setup.seed}/{source.name}/{self.start}/{process}"
            self._shuffled[source_index] = iter(
                webdataset.DataPipeline(
                    lambda: self._unshuffled(source, process),
                    webdataset.shuffle(self.config.shuffle_buffer, rng=random.Random(seed)),
                )
            )
        return self._shuffled[source_index]

    def _unshuffled(self, source: StreamedSource, process: int) -> Iterator[Candidate]:
        """Every n-th of a source's shards, pass after pass, each in a new permutation. Damage stops
        the run, or takes the place of an example, as the policy says.

        Errors: ShardError.
        """
        key = (self.setup.seed, "sequential", source.name, self.start)
        num_processes = self.setup.cut.world_size * max(1, self.config.num_workers)
        passes = (permutation(len(source.shards), *key, number) for number in count())
        num_empty, fault = 0, "it is empty"
        for index in islice(chain.from_iterable(passes), process, None, num_processes):
            num_empty += 1
            dataset, url = source.shards[index]
            shard = without_credentials(url)
            try:
                for candidate in _candidates_in(source, dataset, url):
                    num_empty = 0
                    yield candidate
            except ShardError as error:
                if self.policy.on_bad_shard == "stop":
                    raise
                fault = str(error)
                yield Candidate(dataset.label, shard, "the shard", 0, Opened(None, fault=fault))
            if num_empty > max(len(source.shards), self.policy.max_in_a_row):
                raise ShardError(
                    f"source {source.name}: {num_empty} shards in a row gave no "
                    f"example, such as {shard} ({fault}); look at what they hold"
                )


def _candidates_in(
    source: StreamedSource, dataset: StreamedDataset, url: str
) -> Iterator[Candidate]:
    """The examples of a shard, without their images."""
    shard = without_credentials(url)
    for key, sample in dataset.read(url, source.num_pictures):
        if isinstance(sample, SkipSample):
            yield Candidate(dataset.label, shard, key, 0, Opened(None, fault=str(sample)))
            continue
        for annotation in range(len(sample.annotations)):
            yield Candidate(dataset.label, shard, key, annotation, Opened(sample))
