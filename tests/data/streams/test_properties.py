"""What must hold for any shards, weights, worlds and batches."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.packing.writer import write_dataset
from tests.toys.pictures import noise
from tests.toys.streams import ToyTask, global_batches, records, train_stream
from vlds.data.shards.store import open_dataset
from vlds.data.streams.source import Source

MOST_PROCESSES = 6
"""Workers of all ranks together: more would only take time."""


@dataclass(frozen=True)
class Plan:
    """A mixture, and two ways to cut its batches."""

    shapes: list[tuple[int, int]]
    """Of each data set: samples, and most of them in a shard."""
    weights: list[float]
    cuts: list[dict[str, Any]]
    """Ranks, rows of a micro-batch, and workers of each rank."""
    options: dict[str, Any]


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    shapes = draw(
        st.lists(st.tuples(st.integers(1, 40), st.integers(1, 12)), min_size=1, max_size=3)
    )
    worlds = [draw(st.integers(1, 16)) for _ in range(2)]
    batch = draw(st.integers(max(worlds), 48))
    cuts = [
        {
            "world_size": world,
            "micro": draw(st.none() | st.integers(1, batch)),
            "num_workers": draw(st.integers(0, min(3, MOST_PROCESSES // world))),
        }
        for world in worlds
    ]
    fewest = min(samples for samples, _ in shapes)
    options = {
        "global_batch_size": batch,
        "seed": draw(st.integers(0, 999)),
        "window": draw(st.sampled_from([1, 2, 64])),
        "group": draw(st.sampled_from([1, 2, 5])),
        "lanes": draw(st.sampled_from([n for n in (1, 2, 3, 8) if batch % n == 0 and n <= fewest])),
    }
    weights = [draw(st.floats(0.1, 10)) for _ in shapes]
    return Plan(shapes, weights, cuts, options)


def written(top: Path, shapes: list[tuple[int, int]]) -> list[Path]:
    """A data set of each shape."""
    for number, (samples, per_shard) in enumerate(shapes):
        made = records(f"set{number}", samples, lambda n: noise(n, (8, 8)))
        options = {"kind": "vqa", "split": "train", "shard_samples": per_shard}
        write_dataset(top / str(number), name=f"set{number}", records=made, **options)
    return [top / str(number) for number in range(len(shapes))]


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(plan=plans(), before=st.integers(0, 3))
def test_any_world_reads_the_same_and_goes_on_from_any_other(plan: Plan, before: int) -> None:
    with TemporaryDirectory() as top:
        sources = [
            Source(place.name, ToyTask(), [open_dataset(place)], weight)
            for place, weight in zip(written(Path(top), plan.shapes), plan.weights, strict=True)
        ]
        expected, _ = global_batches(sources, 5, **plan.options)
        first, second = plan.cuts
        begun, state = global_batches(sources, before, **first, **plan.options)
        rest, _ = global_batches(sources, 5 - before, state=state, **second, **plan.options)
        assert begun + rest == expected


def test_a_state_is_small(folders: dict[str, Path]) -> None:
    """VL-Adapter's seven tasks by size, in their second mixture; shards are behind hashes."""
    tasks = ["vqa", "gqa", "nlvr2", "caption", "tvqa", "how2qa", "yc2c"]
    datasets = [open_dataset(folders[name]) for name in ("big", "small")]
    sources = [
        Source(task, ToyTask(), [datasets[n % 2]], 1 + n / 7) for n, task in enumerate(tasks)
    ]
    options: dict[str, Any] = {"global_batch_size": 1024, "micro_batch_size": 16, "world_size": 64}
    first = train_stream(sources, **options)
    list(islice(first, 99))
    second = train_stream(sources, temperature=3.0, **options)
    second.load_state(first.state(), new_phase=True)
    list(islice(second, 9))
    assert second.state()["phase"]["at"] == 99 * 1024
    for stream in (first, second, train_stream(sources, lanes=8, **options)):
        assert len(json.dumps(stream.state())) < 1000


def test_many_data_sets_are_told_by_one_hash_a_task(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    info = json.loads((folders["small"] / "dataset.json").read_text("utf-8"))
    places = []
    for number in range(12):
        place = Path(shutil.copytree(folders["small"], tmp_path / f"d{number}"))
        (place / "dataset.json").write_text(json.dumps(info | {"name": f"one{number}"}))
        places.append(open_dataset(place))
    state = train_stream([Source("red", ToyTask(), places)]).state()
    assert len(json.dumps(state)) < 400
    for kept, said in ((11, r"\w{16} -> \w{16}"), (2, r"\w{16} -> something")):
        with pytest.raises(ValueError, match=rf"data\.red: {said}"):
            train_stream([Source("red", ToyTask(), places[:kept])]).load_state(state)
