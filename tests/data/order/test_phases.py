"""The mixture changes in mid-run, and no source loses its place."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.toys.streams import all_ids, global_batches, train_stream
from vlds.data.order.epoch_order import EpochOrder
from vlds.data.order.mixed_order import MixedOrder, Phase, mixing_shares, mixture_of
from vlds.data.streams.source import Source


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


def test_a_third_phase(sources: list[Source]) -> None:
    counted: Counter[int] = Counter()
    state = None
    for weights in ([3.0, 1.0], [1.0, 1.0], [1.0, 7.0]):
        stream = train_stream(reweighted(sources, weights))
        if state is not None:
            stream.load_state(state, new_phase=True)
        for task, ids in ids_by_task(stream, 8).items():
            counted[task] += len(ids)
        state = stream.state()
        sizes = {source.name: source.datasets[0].num_annotations for source in sources}
        given_so_far = {name: epoch * sizes[name] for name, epoch in stream.epochs().items()}
        assert given_so_far == pytest.approx({"red": counted[0], "blue": counted[1]})
    assert counted == {0: 48 + 32 + 8, 1: 16 + 32 + 56}


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
