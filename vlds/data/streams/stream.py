"""The streams of indexed shards that training and evaluation read: this rank's micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlds.data.errors import BadSample, ErrorPolicy
from vlds.data.order.batch_cut import BatchCut
from vlds.data.order.epoch_order import EpochOrder
from vlds.data.order.mixture import Unit, batch_sizes, mixed_order
from vlds.data.order.permutation import hashed
from vlds.data.streams.assemble import Assembler
from vlds.data.streams.eval_order import EvalOrder
from vlds.data.streams.loader import batch_of
from vlds.data.streams.lost_workers import parcels
from vlds.data.streams.mixed_stream import ALONE, CACHE_BYTES, MixedStream
from vlds.data.streams.source import Source
from vlds.schema import Batch, ImageSpec

MOST_NAMED = 4
"""Data sets that a state names one by one; of more it says only whether a task's are the same."""


class TrainStream(MixedStream):
    """Indexed shards: any number of ranks and workers reads the same global batches."""

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        tokenizer: Any,
        image: ImageSpec | None,
        seed: int,
        global_batch_size: int,
        cut: BatchCut = ALONE,
        global_rank: int = 0,
        num_workers: int = 0,
        worker_timeout: float = 0.0,
        unit: Unit = "example",
        temperature: float | None = None,
        window: int = 64,
        group: int = 1,
        lanes: int = 1,
        errors: ErrorPolicy | None = None,
        ledger: Path | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """Check everything, read each data set's first sample; `ledger` lists bad samples."""
        names = [source.name for source in sources]
        if not sources or len(set(names)) < len(names):
            raise ValueError(f"sources {names}: give at least one, and each a name of its own")
        for source in sources:
            source.check(image)
        policy = errors or ErrorPolicy()
        orders = [
            EpochOrder(
                source.name, source.counts, seed=seed, window=window, group=group, lanes=lanes
            )
            for source in sources
        ]
        order = mixed_order(
            orders,
            [source.weight for source in sources],
            seed=seed,
            temperature=temperature,
            global_batch_size=global_batch_size,
            batch_sizes=batch_sizes(sources, unit, global_batch_size),
            lanes=lanes,
        )
        super().__init__(
            order,
            global_batch_size=global_batch_size,
            cut=cut,
            global_rank=global_rank,
            num_workers=num_workers,
            worker_timeout=worker_timeout,
            policy=policy,
            ledger=ledger,
        )
        self.sources = list(sources)
        self._assembler = Assembler(
            sources, order, tokenizer, image, seed=seed, policy=policy, cache_bytes=cache_bytes
        )

    def _assemble(self) -> Assembler:
        return self._assembler

    def fingerprint(self) -> dict[str, Any]:
        """What the order depends on; a state is of use only where this is the same."""
        data: dict[str, Any] = {
            source.name: {dataset.label: dataset.fingerprint() for dataset in source.datasets}
            for source in self.sources
        }
        if sum(map(len, data.values())) > MOST_NAMED:
            data = {name: hashed(told) for name, told in data.items()}
        return {"order": self.order.fingerprint(), "data": data}


class EvalStream:
    """One rank's part of an evaluation: some of its batches, whatever the number of ranks."""

    def __init__(
        self,
        source: Source,
        order: EvalOrder,
        *,
        tokenizer: Any,
        image: ImageSpec | None,
        world_size: int = 1,
        global_rank: int = 0,
        num_workers: int = 0,
        worker_timeout: float = 0.0,
        task_index: int = 0,
    ) -> None:
        """`worker_timeout`: as in `parcels`. `task_index`: number of the task in the recipe."""
        source.check(image)
        self.bad: list[BadSample] = []
        """Examples of this rank that could not be read, as of the last iteration."""
        self._assembler = Assembler(
            [source],
            order,
            tokenizer,
            image,
            seed=None,
            policy=ErrorPolicy(),
            cache_bytes=0,
            first_task=task_index,
        )
        self._batches = order.batches[global_rank::world_size]
        self._num_workers = num_workers
        self._worker_timeout = worker_timeout

    def __len__(self) -> int:
        """Batches of this rank."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        self.bad = []
        for parcel in parcels(
            self._assembler, self._batches, self._num_workers, self._worker_timeout
        ):
            first: dict[int, BadSample] = {}  # substitutes that are bad as well are of no interest
            for entry in parcel.bad:
                first.setdefault(entry.position, entry)
            self.bad += first.values()
            yield batch_of(parcel)
