"""The streams of indexed shards that training and evaluation read: this rank's micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from vlds.data.config import DataConfig
from vlds.data.errors import BadSample, ErrorPolicy
from vlds.data.order.epoch_order import EpochOrder
from vlds.data.order.permutation import hashed
from vlds.data.streams.assemble import Assembler, StreamSetup
from vlds.data.streams.eval_order import EvalOrder
from vlds.data.streams.indexed_reader import IndexedReader
from vlds.data.streams.loader import parcels
from vlds.data.streams.mixed_stream import MixedStream
from vlds.data.streams.source import Source
from vlds.schema import Batch

MOST_NAMED = 4
"""Data sets that a state names one by one; of more it says only whether a task's are the same."""


class TrainStream(MixedStream):
    """Indexed shards: any number of ranks and workers reads the same global batches."""

    def __init__(self, sources: Sequence[Source], config: DataConfig, setup: StreamSetup) -> None:
        """Check everything; read the first sample of each data set."""
        names = [source.name for source in sources]
        if not sources or len(set(names)) < len(names):
            raise ValueError(f"sources {names}: give at least one, and each a name of its own")
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
        for parcel in parcels(
            self._assembler, self._batches, self._num_workers, self._worker_timeout
        ):
            first_bad: dict[int, BadSample] = {}  # without substitutes that are bad, too
            for entry in parcel.bad:
                first_bad.setdefault(entry.position, entry)
            self.bad += first_bad.values()
            yield parcel.unpack()
