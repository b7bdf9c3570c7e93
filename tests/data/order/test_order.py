"""The order is a pure function, goes through everything, mixes exactly, and can be sought; any
global batch is cut for any number of ranks."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlds.data.order.epoch_order import Draws, EpochOrder, permutation, random_words
from vlds.data.order.mixed_order import BatchCut, MixedOrder, mixing_shares


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


def test_a_window_reads_only_its_shards() -> None:
    counts = [np.full(10, 2, np.uint32) for _ in range(6)]
    order = EpochOrder("s", counts, seed=3, window=2)
    shards = [sample // 10 for sample, _ in pairs(order, 0, order.size)]
    thirds = [set(shards[i : i + 40]) for i in range(0, 120, 40)]
    assert [len(third) for third in thirds] == [2, 2, 2]
    assert set.union(*thirds) == set(range(6))
    assert shards[:40] != sorted(shards[:40])


def test_epochs_seeds_and_names_differ() -> None:
    counts = [np.full(50, 2, np.uint32)]
    order = EpochOrder("s", counts, seed=3, window=64)
    first = pairs(order, 0, 100)
    assert first != pairs(order, 100, 200)
    assert first != pairs(EpochOrder("s", counts, seed=4, window=64), 0, 100)
    assert first != pairs(EpochOrder("t", counts, seed=3, window=64), 0, 100)
    assert first == pairs(EpochOrder("s", counts, seed=3, window=64), 0, 100)


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


def test_small_shares_enlarge_the_block() -> None:
    order = mixed([5, 5], mixing_shares([999, 1], [5, 5], None))
    assert order.block >= 1000
    sources, _, _ = order.at(np.arange(order.block))
    assert np.count_nonzero(sources == 1) >= 1


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
