"""What must hold for any shards, weights, worlds and batches."""

from __future__ import annotations

import json
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.writer import write_dataset
from tests.data.conftest import ToyTask, png, records, train_stream
from vlds.data import Source, TrainStream, open_dataset

BATCH = 48
WORLDS = (1, 2, 3, 4, 6, 8, 12, 16)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Many small shards, some, and one."""
    top = tmp_path_factory.mktemp("shards")
    for name, samples, per_shard in (("many", 40, 3), ("some", 17, 5), ("one", 9, 100)):
        write_dataset(
            top / name,
            name=name,
            kind="vqa",
            split="train",
            records=records(name, samples, lambda n: png(n, (8, 8))),
            shard_samples=per_shard,
        )
    return {name: top / name for name in ("many", "some", "one")}


@st.composite
def plans(draw: st.DrawFn) -> dict[str, Any]:
    """A mixture, and two ways to cut its batches."""
    names = draw(st.lists(st.sampled_from(["many", "some", "one"]), min_size=1, unique=True))
    weights = [draw(st.sampled_from([0.5, 1.0, 2.5])) for _ in names]
    worlds = [draw(st.sampled_from(WORLDS)) for _ in range(2)]
    micros = [
        draw(st.sampled_from([m for m in range(1, BATCH + 1) if BATCH // world % m == 0]))
        for world in worlds
        if BATCH % world == 0
    ]
    return {
        "names": names,
        "weights": weights,
        "cuts": list(zip(worlds, micros, strict=True)),
        "options": {
            "seed": draw(st.integers(0, 999)),
            "window": draw(st.sampled_from([1, 2, 64])),
            "group": draw(st.sampled_from([1, 2, 5])),
            "lanes": draw(st.sampled_from([1, 2, 8])),
        },
    }


def all_ranks(
    sources: list[Source], cut: tuple[int, int], options: dict[str, Any], num_workers: int = 0
) -> list[TrainStream]:
    world_size, micro = cut
    return [
        train_stream(
            sources,
            global_batch_size=BATCH,
            micro_batch_size=micro,
            world_size=world_size,
            global_rank=rank,
            num_workers=num_workers,
            **options,
        )
        for rank in range(world_size)
    ]


def read(streams: list[TrainStream], cut: tuple[int, int], steps: int) -> list[list[str]]:
    """Ids of the global batches, from micro-batches of all ranks in turn."""
    world_size, micro = cut
    accumulation = BATCH // (world_size * micro)
    parts = [list(islice(stream, steps * accumulation)) for stream in streams]
    return [
        [
            f"{task}/{id}"
            for number in range(step * accumulation, (step + 1) * accumulation)
            for batches in parts
            for id, task in zip(
                batches[number].ids, batches[number].task_index.tolist(), strict=True
            )
        ]
        for step in range(steps)
    ]


def opened(folders: dict[str, Path], plan: dict[str, Any]) -> list[Source]:
    return [
        Source(name, ToyTask(), [open_dataset(folders[name])], weight)
        for name, weight in zip(plan["names"], plan["weights"], strict=True)
    ]


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(plan=plans(), before=st.integers(0, 3))
def test_any_world_reads_the_same_and_goes_on_from_any_other(
    folders: dict[str, Path], plan: dict[str, Any], before: int
) -> None:
    sources, options = opened(folders, plan), plan["options"]
    expected = read(all_ranks(sources, (1, BATCH), options), (1, BATCH), 5)
    first, second = plan["cuts"]
    streams = all_ranks(sources, first, options)
    found = read(streams, first, before)
    states = [json.dumps(stream.state()) for stream in streams]
    assert len(set(states)) == 1
    rest = all_ranks(sources, second, options)
    for stream in rest:
        stream.load_state(json.loads(states[0]))
    assert found + read(rest, second, 5 - before) == expected


@pytest.mark.parametrize("num_workers", [1, 3])
def test_workers_change_nothing(folders: dict[str, Path], num_workers: int) -> None:
    plan = {"names": ["many", "one"], "weights": [1.0, 2.5]}
    options = {"seed": 3, "group": 2, "lanes": 2}
    sources = opened(folders, plan)
    expected = read(all_ranks(sources, (1, BATCH), options), (1, BATCH), 3)
    cut = (2, 12)
    assert read(all_ranks(sources, cut, options, num_workers), cut, 3) == expected


def test_one_shard_feeds_sixteen_ranks(folders: dict[str, Path]) -> None:
    sources = opened(folders, {"names": ["one"], "weights": [1.0]})
    streams = all_ranks(sources, (16, 3), {"seed": 1})
    assert [len(list(islice(stream, 4))) for stream in streams] == [4] * 16
    assert {stream.consumed for stream in streams} == {4 * BATCH}


def test_a_state_is_small(folders: dict[str, Path]) -> None:
    """VL-Adapter's seven tasks by size, in their second mixture; shards are behind hashes."""
    tasks = ["vqa", "gqa", "nlvr2", "caption", "tvqa", "how2qa", "yc2c"]
    sources = [
        Source(task, ToyTask(), [open_dataset(folders[["many", "some", "one"][n % 3]])], 1 + n / 7)
        for n, task in enumerate(tasks)
    ]
    first = train_stream(sources, global_batch_size=1024, micro_batch_size=16, world_size=64)
    list(islice(first, 99))
    assert len(json.dumps(first.state())) < 1000
    options: dict[str, Any] = {"global_batch_size": 1024, "micro_batch_size": 16, "world_size": 64}
    second = train_stream(sources, temperature=3.0, **options)
    second.load_state(first.state(), new_phase=True)
    list(islice(second, 9))
    assert second.state()["phase"]["at"] == 99 * 1024
    assert len(json.dumps(second.state())) < 1000
    lanes = train_stream(sources, lanes=8, **options)
    assert len(json.dumps(lanes.state())) < 1000


def test_many_data_sets_are_told_by_one_hash_a_task(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    places = []
    for number in range(12):
        info = json.loads((folders["one"] / "dataset.json").read_text())
        place = Path(shutil.copytree(folders["one"], tmp_path / f"d{number}"))
        (place / "dataset.json").write_text(json.dumps(info | {"name": f"one{number}"}))
        places.append(open_dataset(place))
    stream = train_stream([Source("red", ToyTask(), places)])
    assert len(json.dumps(stream.state())) < 400
    fewer = train_stream([Source("red", ToyTask(), places[:11])])
    with pytest.raises(ValueError, match=r"data\.red: \w{16} -> \w{16}"):
        fewer.load_state(stream.state())
    few = train_stream([Source("red", ToyTask(), places[:2])])
    with pytest.raises(ValueError, match=r"data\.red: \w{16} -> something"):
        few.load_state(stream.state())
