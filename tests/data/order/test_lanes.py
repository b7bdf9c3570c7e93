"""Lanes: parts of the global batch with shards of their own, so that nodes share the fetching."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.toys.strategies import SHARD_COUNTS, expected_pairs
from tests.toys.streams import train_stream
from vlds.data.order.epoch_order import EpochOrder
from vlds.data.order.mixed_order import MixedOrder, mixing_shares
from vlds.data.streams.source import Source


@settings(deadline=None, max_examples=80)
@given(
    counts=SHARD_COUNTS,
    seed=st.integers(0, 2**32),
    window=st.integers(1, 8),
    group=st.integers(1, 4),
    lanes=st.integers(1, 6),
)
def test_the_lanes_share_an_epoch(
    counts: list[np.ndarray], seed: int, window: int, group: int, lanes: int
) -> None:
    size = sum(int(shard.sum()) for shard in counts)
    lanes = min(lanes, size)
    order = EpochOrder("s", counts, seed=seed, window=window, group=group, lanes=lanes)
    assert order.size == size
    for epoch in range(2):
        got: list[tuple[int, int]] = []
        for lane in range(lanes):
            start, end = order.stretch(lane)
            length = end - start
            assert abs(length - size / lanes) <= 1
            samples, annotations = order.at(np.arange(epoch * length, (epoch + 1) * length), lane)
            got += zip(samples.tolist(), annotations.tolist(), strict=True)
        assert sorted(got) == expected_pairs(counts)


def test_a_lane_reads_the_shards_of_its_stretch_alone() -> None:
    counts = [np.full(50, 2, np.uint32) for _ in range(64)]
    order = EpochOrder("s", counts, seed=3, window=4, lanes=16)
    shards_of = [
        set((order.at(np.arange(400), lane)[0] // 50).tolist()) for lane in range(order.lanes)
    ]
    assert all(len(shards) == 4 for shards in shards_of)
    assert set().union(*shards_of) == set(range(64))
    again = [set((order.at(np.arange(400, 800), n)[0] // 50).tolist()) for n in range(16)]
    assert again != shards_of  # other shards in the next epoch


@settings(deadline=None, max_examples=50)
@given(
    lanes=st.sampled_from([1, 2, 4, 8]),
    group=st.integers(1, 4),
    window=st.integers(1, 8),
    positions=st.lists(st.integers(0, 5000), min_size=1, max_size=30),
)
def test_any_positions_in_any_order_give_the_same(
    lanes: int, group: int, window: int, positions: list[int]
) -> None:
    def new_order() -> MixedOrder:
        options = {"seed": 1, "window": window, "group": group, "lanes": lanes}
        orders = [EpochOrder(name, [np.full(7, 3, np.uint32)] * 5, **options) for name in "ab"]
        shares = mixing_shares([1, 3], [1, 1], None)
        return MixedOrder(orders, shares, seed=1, lanes=lanes, batch_size=8)

    through = new_order().at(np.arange(5001))
    sought = new_order().at(np.array(positions))
    for one, other in zip(sought, through, strict=True):
        assert one.tolist() == other[positions].tolist()


def test_tasks_have_their_shares_in_every_lane(sources: list[Source]) -> None:
    tasks = [
        batch.task_index.view(4, 2)
        for batch in islice(train_stream(sources, lanes=4, micro_batch_size=8), 64)
    ]
    for lane in range(4):
        counted = Counter(task for batch in tasks for task in batch[lane].tolist())
        assert counted[0] == 3 * counted[1]
