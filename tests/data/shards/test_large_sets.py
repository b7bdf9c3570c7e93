"""Data sets with more samples than a process keeps the index of, and with many shards."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from data_prep.packing.writer import write_dataset
from tests.toys.streams import ToyTask, records, train_stream
from vlds.data.errors import ShardError
from vlds.data.shards import info as info_module
from vlds.data.shards import shard_index, store
from vlds.data.shards.info import DatasetInfo
from vlds.data.shards.store import open_dataset
from vlds.data.streams.source import Source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve shards of five samples."""
    many = records("many", 60)
    folder = tmp_path / "many"
    write_dataset(folder, name="many", kind="vqa", split="train", records=many, shard_samples=5)
    return folder


def keep_two(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Let a process keep the index of two shards; counts what is read of each."""
    for module in (shard_index, store):
        monkeypatch.setattr(module, "KEPT_SAMPLES", 10)
    read = Counter[str]()
    load = store.load_index

    def counted(folder: Path, shard: info_module.ShardInfo, **options: object) -> object:
        read[shard.name] += 1
        return load(folder, shard, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "load_index", counted)
    return read


def first_steps(folder: Path, number: int, **options: object) -> list[list[str]]:
    stream = train_stream([Source("s", ToyTask(), [open_dataset(folder)])], window=3, **options)
    return [
        [id for batch in batches for id in batch.ids] for batches in islice(stream.steps(), number)
    ]


def test_the_order_is_that_of_a_small_set(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs, with lanes and without."""
    plain, lanes = first_steps(folder, 45), first_steps(folder, 45, lanes=4)
    read = keep_two(monkeypatch)
    assert first_steps(folder, 45) == plain
    assert len(read) == 12
    assert first_steps(folder, 45, lanes=4) == lanes


def test_opening_reads_no_index_and_a_window_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = keep_two(monkeypatch)
    dataset = open_dataset(folder)
    assert not read
    stream = train_stream([Source("s", ToyTask(), [dataset])], window=3)
    assert len(read) <= 1  # the first sample was looked at
    next(stream.steps())
    assert len(read) <= 4
    kept = dataset._indexes._here
    assert sum(len(index.counts) for index in kept.values()) <= 10


def test_a_wrong_index_is_found_when_it_is_wanted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "many-train-00007.tar.cnt"
    path.write_bytes(bytes(len(path.read_bytes())))
    with pytest.raises(ShardError, match=r"00007\.tar\.cnt is not the one that dataset\.json"):
        open_dataset(folder)
    keep_two(monkeypatch)
    with pytest.raises(ShardError, match=r"00007\.tar\.cnt is not the one that dataset\.json"):
        first_steps(folder, 45)


def test_the_place_of_an_annotation(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_two(monkeypatch)
    dataset = open_dataset(folder)
    flat = [(n, k) for n in range(60) for k in range(1 + n % 5)]
    assert [dataset.place_of(n) for n in range(dataset.num_annotations)] == flat


def test_a_large_list_of_shards(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read in pieces: the same as at once, in any layout, and wrong ones are named."""
    file = folder / "dataset.json"
    at_once, text = DatasetInfo.load(folder), file.read_text("utf-8")
    monkeypatch.setattr(info_module, "LARGE", 0)
    monkeypatch.setattr(info_module, "PIECE", 5)
    parsed = json.loads(text)
    for layout in (text, json.dumps(parsed), json.dumps(dict(reversed(parsed.items())), indent=3)):
        file.write_text(layout, "utf-8")
        info = DatasetInfo.load(folder)
        assert info == at_once
        assert info.table.digest("sha256") == at_once.table.digest("sha256")
        assert list(info.shards) == list(at_once.shards)
    for wrong, said in (
        (text[:-200], "is not JSON"),
        (text.replace('"samples": 5', '"samples": "5"', 1), r"\[0\]\.samples is '5'"),
        (text.replace('"bytes"', '"size"', 1), r"bytes is missing"),
        ("[]", "is not JSON"),
    ):
        file.write_text(wrong, "utf-8")
        with pytest.raises(ValueError, match=said):
            DatasetInfo.load(folder)
