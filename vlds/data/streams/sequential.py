"""The sequential reader: webdataset's way to read shards, from the first byte to the last.

For shards without an index, or that can only be streamed. The shards of a source are permuted anew
in every pass, and the passes follow one another without end; with n loader processes on all ranks,
process k opens every n-th shard of that sequence. So no process ever waits for another or runs dry,
also with fewer shards than processes: all ranks have as many batches. Which task stands at which
position is the mixture's affair, the same as for indexed shards; which of its examples is not: that
depends on the number of processes, and a stream that goes on somewhere begins new shards there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlds.data.errors import ErrorPolicy
from vlds.data.order.batch_cut import BatchCut
from vlds.data.order.mixture import NamedOrder, Unit, batch_sizes, mixed_order
from vlds.data.streams.endless import Options, SequentialAssembler, Start
from vlds.data.streams.mixed_stream import ALONE, CACHE_BYTES, MixedStream
from vlds.data.streams.streamed_source import StreamedSource
from vlds.schema import ImageSpec

NOTICE = (
    "data.reader sequential: shards are split over ranks and workers, so the order of examples "
    "depends on their number; --resume begins new shards; epochs are not exact. For all of these: "
    "`python -m data_prep index` and data.reader indexed"
)


class SequentialStream(MixedStream):
    """Shards as they come; what is weaker than in TrainStream, `notice` says."""

    notice = NOTICE

    def __init__(
        self,
        sources: Sequence[StreamedSource],
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
        shuffle_buffer: int = 1000,
        errors: ErrorPolicy | None = None,
        ledger: Path | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """Check everything, read each data set's first sample; `ledger` lists bad samples."""
        policy = errors or ErrorPolicy()
        for source in sources:
            source.check(image, policy)
        about = {"shuffle_buffer": shuffle_buffer}
        order = mixed_order(
            [NamedOrder(source.name, source.num_annotations, about) for source in sources],
            [source.weight for source in sources],
            seed=seed,
            temperature=temperature,
            global_batch_size=global_batch_size,
            batch_sizes=batch_sizes(sources, unit, global_batch_size),
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
        self._options = Options(
            tokenizer, image, policy, seed, max(1, num_workers), shuffle_buffer, cache_bytes
        )

    def _assemble(self) -> SequentialAssembler:
        begins = Start(self.consumed, self.cut.world_size, self.global_rank)
        return SequentialAssembler(self.sources, self.order, self._options, begins)

    def fingerprint(self) -> dict[str, Any]:
        """The mixture and the lists of shards."""
        data = {source.name: source.fingerprint() for source in self.sources}
        return {"reader": "sequential", "order": self.order.fingerprint(), "data": data}
