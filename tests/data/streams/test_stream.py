"""The training stream on real shards: the same for any ranks and workers, resumed by a seek."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toys.streams import (
    ToyTask,
    all_ids,
    global_batches,
    rows_of,
    train_stream,
)
from vlds.data.shards.store import open_dataset
from vlds.data.streams.source import Source
from vlds.data.streams.stream import TrainStream


@pytest.mark.sampled(5)
@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize(
    ("world_size", "micro", "num_workers"),
    [
        (2, 4, 2), (1, 4, 0), (1, 8, 2), (5, None, 2), (2, 2, 0), (8, 1, 0), (4, 1, 2),
        (3, None, 0), (3, 1, 2), (1, 3, 2), (3, 2, 0), (7, None, 0),
    ],
)  # fmt: skip
def test_global_batches_depend_on_nothing_but_seed_and_lanes(
    sources: list[Source], lanes: int, world_size: int, micro: int | None, num_workers: int
) -> None:
    expected, _ = global_batches(sources, 6, lanes=lanes)
    cut = {"world_size": world_size, "micro": micro, "num_workers": num_workers}
    got, state = global_batches(sources, 3, lanes=lanes, **cut)
    rest, state = global_batches(sources, 3, lanes=lanes, state=state)
    assert got + rest == expected
    assert state["consumed"] == 48
    for other in ({"seed": 6, "lanes": lanes}, {"lanes": 2}):
        assert global_batches(sources, 6, **other)[0] != expected


def test_two_data_sets_of_one_task_are_shuffled_together(folders: dict[str, Path]) -> None:
    datasets = [open_dataset(folders["big"]), open_dataset(folders["small"])]
    stream = train_stream([Source("red", ToyTask(), datasets)])
    ids = [id for batch in islice(stream, 25) for id in batch.ids][: 180 + 18]
    assert sorted(ids) == sorted(all_ids(datasets[0]) + all_ids(datasets[1]))
    assert len({id.split("-")[0] for id in ids[:60]}) == 2


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("world_size", "micro"), [(1, None), (2, None), (3, 2), (4, 1)])
@pytest.mark.parametrize("lanes", [1, 2])
def test_each_task_has_batches_of_its_own_size(
    sources: list[Source], world_size: int, micro: int | None, lanes: int
) -> None:
    sized = [
        replace(source, weight=1.0, batch_size=size)
        for source, size in zip(sources, (10, 4), strict=True)
    ]
    options = {"unit": "global_batch", "temperature": 1, "lanes": lanes}
    batches, state = global_batches(sized, 3 * 23, world_size=world_size, micro=micro, **options)
    assert batches == global_batches(sized, 3 * 23, **options)[0]
    of_task = {10: "red", 4: "blue"}
    names = [of_task[len(batch)] for batch in batches]
    # 180 annotations in 18 batches and 18 in 5, which hold 20: an epoch has 23 steps.
    assert Counter(names) == {"red": 3 * 18, "blue": 3 * 5}
    ids = {name: [] for name in of_task.values()}  # type: dict[str, list[str]]
    for name, batch in zip(names, batches, strict=True):
        ids[name] += [id for id, *_ in batch]
    assert len(ids["red"]) == 540
    assert set(Counter(ids["red"][:180]).values()) == {1}
    assert lanes > 1 or set(Counter(ids["blue"][:18]).values()) == {1}
    stream = train_stream(sized, **options)
    stream.load_state(state)
    assert stream.epochs() == {"red": pytest.approx(3), "blue": pytest.approx(60 / 18)}
    assert stream.epochs(after_steps=69) == stream.epochs()


def test_small_cache_and_no_cache_give_the_same_pixels(sources: list[Source]) -> None:
    streams = [train_stream(sources, picture_cache_bytes=n) for n in (0, 1000, 1 << 20)]
    for batches in zip(*(islice(stream, 30) for stream in streams), strict=True):
        assert rows_of(batches[0]) == rows_of(batches[1]) == rows_of(batches[2])


def test_a_state_of_other_data_is_refused_with_what_differs(sources: list[Source]) -> None:
    state = train_stream(sources, lanes=2).state()
    for other, said in (
        (train_stream(sources, lanes=2, seed=6), r"(?s)order\.seed: 5 -> 6.*Resume with the saved"),
        (train_stream(sources[:1], lanes=2), r"data\.blue: something -> nothing"),
        (train_stream(sources, lanes=2, group=2), r"order\.group: 1 -> 2"),
        (train_stream(sources[::-1], lanes=2), r"order\.task_order"),
        (train_stream(sources, lanes=4), r"order\.lanes: 2 -> 4"),
    ):
        with pytest.raises(ValueError, match=said):
            other.load_state(state)


def test_another_global_batch_goes_on_with_a_warning(sources: list[Source]) -> None:
    state = train_stream(sources).state() | {"consumed": 16}
    stream = train_stream(sources, global_batch_size=4)
    with pytest.warns(UserWarning, match="global_batch_size was 8, is 4"):
        stream.load_state(state)
    expected = [id for batch in islice(train_stream(sources), 3) for id in batch.ids]
    assert next(iter(stream)).ids == expected[16:20]


def test_an_iterator_is_void_after_a_seek(sources: list[Source]) -> None:
    stream = train_stream(sources)
    iterator = iter(stream)
    next(iterator)
    stream.load_state(stream.state())
    with pytest.raises(RuntimeError, match="this iterator is void"):
        next(iterator)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"world_size": 9}, "global_batch_size: 8 examples for 9 ranks; give at least"),
        ({"lanes": 3}, "lanes: 3 do not divide global_batch_size 8"),
        ({"lanes": 0}, "lanes: got 0"),
        ({"lanes": 32, "global_batch_size": 32}, "32 are more than the 18 annotations of source"),
        ({"image": None}, "holds pictures, but the vision encoder reads stored"),
    ],
)
def test_wrong_options_are_refused(
    sources: list[Source], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        train_stream(sources, **options)


@pytest.mark.parametrize(
    ("names", "times", "said"),
    [
        (["red"], 0, "source red: no data sets"),
        (["red"], 2, "big-train appears twice"),
        (["red", "red"], 1, "each with a different name"),
    ],
)
def test_wrong_sources_are_refused(
    folders: dict[str, Path], names: list[str], times: int, said: str
) -> None:
    datasets = [open_dataset(folders["big"])] * times
    with pytest.raises(ValueError, match=said):
        train_stream([Source(name, ToyTask(), datasets) for name in names])


def test_workers_use_one_thread_and_leave_signals_alone(sources: list[Source]) -> None:
    class Probe(ToyTask):
        def example(self, name, sample, annotation, rng):  # type: ignore[no-untyped-def]
            import signal

            example = super().example(name, sample, annotation, rng)
            asking = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
            ignored = all(signal.getsignal(number) == signal.SIG_IGN for number in asking)
            return replace(example, id=f"{torch.get_num_threads()} {ignored}")

    stream: TrainStream = train_stream([Source("red", Probe(), sources[0].datasets)], num_workers=1)
    assert set(next(iter(stream)).ids) == {"1 True"}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_runs_random_numbers_are_left_alone(sources: list[Source], num_workers: int) -> None:
    state = torch.get_rng_state()
    next(iter(train_stream(sources, num_workers=num_workers)))
    assert torch.equal(torch.get_rng_state(), state)
