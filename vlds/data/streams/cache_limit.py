"""Checks that a limited cache of shards holds what a run reads in turns.

Inside a window examples come from all of its shards, and a process may begin the next window while
another is still in the last one. With room for two windows of each lane that this machine reads,
and for all data that is evaluated, the cache never removes a shard that the current window needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import nlargest

import numpy as np

from vlds.data.order.batch_cut import BatchCut
from vlds.data.streams.source import Source


def check_cache_limit(
    limit: int | None,
    train: Sequence[Source],
    evaluation: Sequence[Source],
    *,
    window: int,
    num_lanes: int = 1,
) -> None:
    """`num_lanes`: lanes that this machine reads.

    Errors: ValueError that names the bytes needed.
    """
    used = [*train, *evaluation]
    everything = {place: bytes for source in used for place, bytes in _fetched(source).items()}
    num_shards = 2 * window * num_lanes
    in_turns = [nlargest(num_shards, _fetched(source).values()) for source in train]
    evaluated = [_fetched(source).values() for source in evaluation]
    need = min(sum(everything.values()), sum(map(sum, [*in_turns, *evaluated])))
    if limit is not None and need > limit:
        raise ValueError(
            f"data.cache_bytes: got {limit}, but what is read in turns has {need}: of each task "
            f"two windows (data.window {window}) in each of the {num_lanes} lanes that this "
            "machine reads, and all that is evaluated; give at least that many, or a smaller "
            "window"
        )


def lanes_read(lanes: int, batch_size: int, cut: BatchCut, ranks: range) -> int:
    """How many lanes of a global batch these global ranks read."""
    slots = np.arange(batch_size)
    ours = np.isin(cut.ranks_of(slots, batch_size), ranks)
    return len(np.unique(slots[ours] * lanes // batch_size))


def _fetched(source: Source) -> dict[tuple[str, str], int]:
    """Bytes of a source's shards that are read through a cache."""
    return {
        (str(dataset.folder), shard.name): shard.bytes
        for dataset in source.datasets
        if dataset.is_remote
        for shard in dataset.info.shards
    }
