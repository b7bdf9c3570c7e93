"""The order is a pure function, goes through everything, mixes exactly, and can be sought; any
global batch is cut for any number of ranks.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.toys.strategies import SHARD_COUNTS, expected_pairs
from tests.toys.streams import all_ids, global_batches, train_stream
from vlds.data.order.epoch_order import Draws, EpochOrder, permutation, random_words
from vlds.data.order.mixed_order import BatchCut, MixedOrder, Phase, mixing_shares, mixture_of
from vlds.data.streams.source import Source


def pairs(order: EpochOrder, begin: int, end: int) -> list[tuple[int, int]]:
    samples, annotations = order.at(np.arange(begin, end))
    return list(zip(samples.tolist(), annotations.tolist(), strict=True))


@pytest.mark.parametrize("group", [2, 3, 5])
def test_group_keeps_annotations_of_a_sample_together(group: int) -> None:
    counts = [np.full(5, 7, np.uint32) for _ in range(4)]
    order = EpochOrder("s", counts, seed=3, window=2, group=group)
    rows = pairs(order, 0, order.size)
    lengths, at = Counter[int](), 0
    while at < len(rows):
        length = 1
        while at + length < len(rows) and rows[at + length][0] == rows[at][0] and length < group:
            length += 1
        lengths[length] += 1
        at += length
    # 7 = whole groups and a rest, for each of 20 samples; two groups of a sample may stand in line.
    assert lengths[group] >= 20 * (7 // group)
    members = {frozenset(rows[i : i + group]) for i in range(0, len(rows), group)}
    again = pairs(order, order.size, 2 * order.size)
    assert members != {frozenset(again[i : i + group]) for i in range(0, len(rows), group)}


@pytest.mark.parametrize("seed", [0, 7, -1, 2**64 - 1])
def test_draws_depend_on_seed_position_and_attempt_alone(seed: int) -> None:
    draws = Draws(seed)
    for position, attempt in ((3, 0), (10**12, 2), (3, 0)):
        key = (seed % 2**64) << 64 | position
        fresh = np.random.Generator(np.random.Philox(key=key, counter=attempt << 192))
        rng = draws.at(position, attempt)
        # What the last example left half used is of no effect.
        assert rng.integers(2**20, dtype=np.uint32) == fresh.integers(2**20, dtype=np.uint32)
        assert rng.random(3).tolist() == fresh.random(3).tolist()


def test_random_numbers_are_what_they_always_were() -> None:
    # A change here would make every saved position mean something else.
    assert random_words(2, 7, "mix", 0).tolist() == [1981576102232846533, 11347516750770951030]
    assert permutation(6, 7, "mix", 0).tolist() == [0, 4, 3, 1, 5, 2]


def mixed(
    sizes: list[int], shares: list[Fraction], batch_size: int = 1, seed: int = 0
) -> MixedOrder:
    orders = [
        EpochOrder(str(n), [np.ones(size, np.uint32)], seed=seed, window=64)
        for n, size in enumerate(sizes)
    ]
    return MixedOrder(orders, shares, seed=seed, batch_sizes=[batch_size] * len(sizes))


weights = st.lists(st.integers(1, 40), min_size=1, max_size=5)


@settings(deadline=None, max_examples=40)
@given(weights=weights, batch_size=st.sampled_from([1, 3]), start=st.integers(0, 10**9))
def test_proportions_are_exact_within_one_unit(
    weights: list[int], batch_size: int, start: int
) -> None:
    shares = mixing_shares([float(w) for w in weights], [5] * len(weights), None)
    order = mixed([5] * len(weights), shares, batch_size)
    quota = order.quotas(start)
    assert quota.sum() == start * order.block
    for had, share in zip(quota.tolist(), shares, strict=True):
        assert abs(had - share * start * order.block) < 1
    block = order.block * batch_size
    sources, _, _ = order.at(np.arange(start * block, (start + 1) * block))
    given_units = np.bincount(sources, minlength=len(weights)) // batch_size
    assert given_units.tolist() == (order.quotas(start + 1) - quota).tolist()
    assert all(len(set(unit)) == 1 for unit in sources.reshape(-1, batch_size).tolist())


def test_shares_follow_weights_and_temperature() -> None:
    sizes = [900, 100]
    assert mixing_shares([1, 1], sizes, None) == [Fraction(1, 2), Fraction(1, 2)]
    assert mixing_shares([1, 1], sizes, 1) == [Fraction(9, 10), Fraction(1, 10)]
    assert mixing_shares([1, 1], sizes, 2) == [Fraction(3, 4), Fraction(1, 4)]
    assert mixing_shares([0.7, 0.3], sizes, None) == [Fraction(7, 10), Fraction(3, 10)]
    assert mixing_shares([1, 9], sizes, 1) == [Fraction(1, 2), Fraction(1, 2)]


def test_far_positions_cost_little() -> None:
    order = mixed([100_000, 5_000], [Fraction(2, 3), Fraction(1, 3)])
    begin = time.perf_counter()
    order.at(np.arange(987_654_321, 987_654_385))
    assert time.perf_counter() - begin < 1.0


@given(
    world_size=st.integers(1, 16),
    micro=st.none() | st.integers(1, 12),
    extra=st.integers(0, 500),
)
def test_the_shares_of_ranks_differ_by_at_most_a_row(
    world_size: int, micro: int | None, extra: int
) -> None:
    size, cut = world_size + extra, BatchCut(world_size, micro)
    cut.check(size)
    ranks = [cut.pieces(size, rank) for rank in range(world_size)]
    slots = [[slot for piece in pieces for slot in piece] for pieces in ranks]
    assert [slot for share in slots for slot in share] == list(range(size))
    shares = [len(share) for share in slots]
    assert max(shares) - min(shares) <= 1
    owners = cut.ranks_of(np.arange(size), size).tolist()
    assert [owners.count(rank) for rank in range(world_size)] == shares
    assert owners == sorted(owners)
    assert {len(pieces) for pieces in ranks} == {cut.accumulation_steps(size)}
    lengths = [len(piece) for pieces in ranks for piece in pieces]
    assert max(lengths) == cut.largest_piece(size) <= (micro or size)
    assert max(1, min(lengths)) == cut.smallest_piece(size)
    assert min(lengths) > 0 or micro == 1
    # No micro-batch more than the limit needs.
    assert cut.accumulation_steps(size) == -(-max(shares) // (micro or max(shares)))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: mixing_shares([1, 1], [9, 9], 0), "temperature: got 0"),
        (lambda: mixing_shares([1, -1], [9, 9], None), r"weight: got -1"),
        (lambda: mixed([5, 5], mixing_shares([10**7, 1], [5, 5], None)),
         r"source 1: its share of the mixture is 1e-07"),
        (lambda: EpochOrder("s", [np.zeros(3, np.uint32)], seed=0, window=64),
         "source s: its data sets hold no annotation"),
        (lambda: EpochOrder("s", [np.ones(3, np.uint32)], seed=0, window=0), "window: got 0"),
        (lambda: BatchCut(4).check(3, "a.batch_size"),
         "a.batch_size: 3 examples for 4 ranks; give at least one .* start 3 ranks or fewer$"),
        (lambda: BatchCut(4).check(1, "a.batch_size"),
         "a.batch_size: 1 example for 4 ranks; give at least one .* start 1 rank$"),
    ],
)  # fmt: skip
def test_what_has_no_order_is_refused(wrong: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        wrong()


# Lanes: parts of the global batch with shards of their own, so that nodes share the fetching.


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


# The mixture changes in mid-run, and no source loses its place.


def reweighted(sources: list[Source], weights: list[float]) -> list[Source]:
    return [replace(source, weight=weight) for source, weight in zip(sources, weights, strict=True)]


def ids_by_task(stream: object, batches: int) -> dict[int, list[str]]:
    seen: dict[int, list[str]] = {0: [], 1: []}
    for batch in islice(stream, batches):  # type: ignore[call-overload]
        for id, task in zip(batch.ids, batch.task_index.tolist(), strict=True):
            seen[task].append(id)
    return seen


@pytest.mark.parametrize("lanes", [1, 4])
def test_each_source_goes_on_where_it_was(sources: list[Source], lanes: int) -> None:
    first = train_stream(sources, lanes=lanes)
    seen = ids_by_task(first, 8)
    state = json.loads(json.dumps(first.state()))
    second = train_stream(reweighted(sources, [1.0, 3.0]), lanes=lanes)
    second.load_state(state, new_phase=True)
    assert second.epochs() == first.epochs()
    later = ids_by_task(second, 32)
    assert 3 * len(later[0]) == len(later[1])
    if lanes == 1:
        for task, source in enumerate(sources):
            ids = all_ids(source.datasets[0])
            together = (seen[task] + later[task])[: len(ids)]
            assert len(set(together)) == len(together), source.name


def test_a_phase_is_resumed_like_any_state(sources: list[Source]) -> None:
    changed = reweighted(sources, [1.0, 3.0])
    _, state = global_batches(sources, 3)
    stream = train_stream(changed)
    stream.load_state(state, new_phase=True)
    begun = stream.state()
    expected, _ = global_batches(changed, 6, state=begun)
    got, middle = global_batches(changed, 2, world_size=4, micro=2, state=begun)
    rest, end = global_batches(changed, 4, world_size=2, micro=2, state=middle)
    assert got + rest == expected
    assert end["phase"] == begun["phase"]
    assert end["phase"]["at"] == 24


@settings(deadline=None, max_examples=60)
@given(
    lanes=st.sampled_from([1, 2, 4]),
    batch_sizes=st.sampled_from([None, [8, 8, 8], [8, 4, 8]]),
    position=st.integers(0, 3000),
    at=st.integers(0, 50),
)
def test_examples_given_are_those_that_were_drawn(
    lanes: int, batch_sizes: list[int] | None, position: int, at: int
) -> None:
    counts = [np.full(9, 2, np.uint32)] * 4
    orders = [EpochOrder(name, counts, seed=2, window=64, lanes=lanes) for name in "abc"]
    order = MixedOrder(
        orders,
        mixing_shares([1, 2, 5], [1, 1, 1], None),
        seed=2,
        lanes=lanes,
        batch_size=8,
        batch_sizes=batch_sizes,
    )
    order.phase = Phase(8 * at, {"a": [5] * lanes})
    positions = np.arange(8 * at, 8 * at + position)
    sources, _, _ = order.at(positions[positions % 8 < order.sizes_at(positions // 8 * 8)])
    drawn = np.bincount(sources, minlength=3)
    num_given = [sum(order.given(8 * at + position)[name]) for name in "abc"]
    assert num_given == np.add(drawn, [5 * lanes, 0, 0]).tolist()
    # A state holds no more of the mixture than its fingerprint.
    again = mixture_of(json.loads(json.dumps(order.fingerprint())))
    again.phase = order.phase
    assert again.given(8 * at + position) == order.given(8 * at + position)


def test_nothing_changes_unasked_and_some_things_never(sources: list[Source]) -> None:
    state = train_stream(sources).state()
    said = r"(?s)order\.shares\.red: .*with --new-phase each task continues"
    with pytest.raises(ValueError, match=said):
        train_stream(reweighted(sources, [1.0, 3.0])).load_state(state)
    said = r"order\.seed: .*\n.*These cannot change within a run"
    with pytest.raises(ValueError, match=said):
        train_stream(sources, seed=99).load_state(state, new_phase=True)
