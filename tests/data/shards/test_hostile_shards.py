"""Whatever stands in the files of a data set: it is read, counted as bad, or an error that a user
can read; and nothing is written."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.packing.writer import SampleRecord, write_dataset
from tests.toys.pictures import noise
from tests.toys.streams import COLLATOR, SPEC
from vlds.data.config import DataConfig
from vlds.data.errors import ErrorPolicy
from vlds.data.shards.shard_stream import read_shard
from vlds.data.shards.store import open_dataset
from vlds.data.streams.assemble import StreamSetup
from vlds.data.streams.source import EvalOrder, Source, survey
from vlds.data.streams.stream import EvalStream, TrainStream
from vlds.schema import SkipSample
from vlds.tasks import VQA

NUM = 6
FILES = (
    "dataset.json",
    "toy-train-00000.tar",
    "toy-train-00000.tar.idx",
    "toy-train-00000.tar.cnt",
)
LENIENT = ErrorPolicy(max_bad_fraction=1, max_in_a_row=3, on_bad_shard="substitute")
SETUP = StreamSetup(collator=COLLATOR, image=SPEC, seed=0)
FAST = settings(
    max_examples=120, deadline=None, database=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
Damage = Callable[[bytes], bytes]
flips = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 255)), min_size=1, max_size=8)
damages: st.SearchStrategy[Damage] = (
    flips.map(lambda places: lambda data: flipped(data, places))
    | st.integers(0, 1 << 20).map(lambda end: lambda data: data[: end % (len(data) + 1)])
    | st.binary(max_size=700).map(lambda other: lambda data: other)
    | st.tuples(st.integers(0, 1 << 12), st.binary(max_size=64)).map(
        lambda put: lambda data: data[: put[0] % (len(data) + 1)] + put[1] + data[put[0] :]
    )
)  # fmt: skip


def flipped(data: bytes, places: list[tuple[int, int]]) -> bytes:
    """Some bytes are others."""
    out = bytearray(data)
    for place, mask in places:
        if out:
            out[place % len(out)] ^= mask
    return bytes(out)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of VQA that nothing is wrong with."""
    folder = tmp_path_factory.mktemp("hostile") / "whole"
    write(folder, [{"id": str(n), "question": "what?", "label": {"red": 1.0}} for n in range(NUM)])
    return folder


def write(folder: Path, annotations: list[Any]) -> None:
    """One sample for each of the annotations."""
    records = [
        SampleRecord(
            id=str(n),
            members=[("png", noise(n, (8, 8)))],
            json={"annotations": [one], "size": [[8, 8]]},
        )
        for n, one in enumerate(annotations)
    ]
    write_dataset(folder, name="toy", kind="vqa", split="train", records=iter(records))


def check_use(folder: Path) -> None:
    """All that a run does with a data set; what goes wrong is a ValueError."""
    with contextlib.suppress(ValueError):  # ShardError is one
        source = Source("vqa", VQA(train=[str(folder)]), [open_dataset(folder)])
        config = DataConfig(global_batch_size=4, errors=LENIENT)
        stream = TrainStream([source], config, SETUP)
        for batch in islice(stream, 3):
            assert len(batch) == 4
    with contextlib.suppress(ValueError):
        source = Source("vqa", VQA(evaluate=[str(folder)]), [open_dataset(folder)])
        counts = source.counts
        costs = survey(source, range(len(counts)), COLLATOR).costs
        for _ in EvalStream(source, EvalOrder(counts, costs, 4), SETUP):
            pass


def everything_in(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@given(name=st.sampled_from(FILES), damage=damages)
@FAST
def test_damaged_files(whole: Path, name: str, damage: Damage) -> None:
    folder = whole.with_name("damaged")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    (folder / name).write_bytes(damage((whole / name).read_bytes()))
    before = everything_in(whole.parent)
    check_use(folder)
    assert everything_in(whole.parent) == before


@given(field=st.sampled_from(["name", "kind", "shards", "samples", "fields", "source"]), value=JSON)
@FAST
def test_hostile_descriptions(whole: Path, field: str, value: Any) -> None:
    folder = whole.with_name("described")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    info = json.loads((whole / "dataset.json").read_text("utf-8"))
    (folder / "dataset.json").write_text(json.dumps(info | {field: value}), "utf-8")
    check_use(folder)


@pytest.mark.parametrize("name", ["../toy-train-00000.tar", "/etc/hostname", "a/b.tar", "", ".."])
def test_a_shard_lies_in_the_folder_of_its_data_set(whole: Path, tmp_path: Path, name: str) -> None:
    info = json.loads((whole / "dataset.json").read_text("utf-8"))
    info["shards"][0]["name"] = name
    (tmp_path / "dataset.json").write_text(json.dumps(info), "utf-8")
    with pytest.raises(ValueError, match=r"dataset\.json: shards\[0\]: name is .*file name"):
        open_dataset(tmp_path)


@pytest.mark.slow
@given(
    annotations=st.lists(
        JSON
        | st.fixed_dictionaries({"id": JSON, "question": JSON}, optional={"label": JSON})
        | st.fixed_dictionaries({"id": st.text(), "question": st.text(), "label": JSON}),
        min_size=1,
        max_size=3,
    )
)
@FAST
def test_hostile_annotations(whole: Path, annotations: list[Any]) -> None:
    folder = whole.with_name("annotated")
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(
        ValueError, TypeError, KeyError, AttributeError
    ):  # the writer's affair
        write(folder, annotations)
    check_use(folder)


def test_an_annotation_that_lacks_what_the_task_reads(tmp_path: Path) -> None:
    """Replaced and written down in training; in evaluation no score would be whole."""
    good: dict[str, Any] = {"question": "what?", "label": {"red": 1.0}}
    write(tmp_path / "data", [{"id": "0"}, *({"id": str(n), **good} for n in range(1, NUM))])
    source = Source("vqa", VQA(), [open_dataset(tmp_path / "data")])
    config = DataConfig(global_batch_size=NUM, errors=LENIENT)
    stream = TrainStream([source], config, replace(SETUP, ledger=tmp_path / "ledger"))
    (ids,) = (batch.ids for batch in islice(stream, 1))
    assert len(ids) == NUM
    assert "0" not in ids
    reason = "its annotations are not what VQA reads: it has no 'question'"
    assert reason in json.loads((tmp_path / "ledger").read_text("utf-8"))["reason"]
    with pytest.raises(ValueError, match=r"task vqa: sample .* are not what VQA reads"):
        survey(source, range(NUM))


@given(damage=damages)
@FAST
def test_streamed_shards(whole: Path, damage: Damage) -> None:
    """What webdataset's reader hands on comes whole, or the shard is an error."""
    path = whole.with_name("streamed.tar")
    path.write_bytes(damage((whole / FILES[1]).read_bytes()))
    with contextlib.suppress(ValueError, SkipSample):
        for key, content in read_shard(str(path)):
            assert isinstance(key, str)
            assert all(isinstance(data, memoryview) for data in content.values())
