"""Shards that any WebDataset reader reads, the same bytes each time, whole or not there."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import webdataset

from data_prep.packing.pack import shard_order
from data_prep.packing.source import Dropped
from data_prep.packing.writer import DatasetWriter, SampleRecord, ShardLimits, write_dataset
from vlds.data.shards.info import DatasetInfo
from vlds.data.shards.shard_index import build_index
from vlds.data.shards.store import open_dataset
from vlds.runtime.json_files import sha256 as file_sha256


def record(number: int, size: int = 50, **fields: object) -> SampleRecord:
    annotations = [{"id": f"{number}-{n}", "question": "why \u00e9?"} for n in range(number % 3)]
    return SampleRecord(
        id=f"id.{number}",
        members=[("jpg", bytes([number]) * size)],
        json={"annotations": annotations, **fields},
    )


def write(out: Path, records: Iterable[SampleRecord | Dropped], **options: object) -> DatasetInfo:
    values: dict[str, object] = {"name": "vqav2", "kind": "vqa", "split": "train"}
    return write_dataset(out, records=records, **(values | options))  # type: ignore[arg-type]


def test_webdataset_reads_what_was_written(tmp_path: Path) -> None:
    info = write(tmp_path, [record(n, source={"x": n}) for n in range(7)], shard_samples=3)
    assert [shard.name for shard in info.shards] == [f"vqav2-train-0000{n}.tar" for n in range(3)]
    urls = [str(tmp_path / shard.name) for shard in info.shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [s["__key__"] for s in samples] == [f"{n:09d}" for n in range(7)]
    assert [s["jpg"] for s in samples] == [bytes([n]) * 50 for n in range(7)]
    assert json.loads(samples[5]["json"]) == {
        "id": "id.5",
        "images": ["jpg"],
        "annotations": [
            {"id": "5-0", "question": "why \u00e9?"},
            {"id": "5-1", "question": "why \u00e9?"},
        ],
        "source": {"x": 5},
    }
    assert (info.samples, info.annotations) == (7, 6)


def test_headers_are_plain_ustar_without_times_and_owners(tmp_path: Path) -> None:
    write(tmp_path, [record(1)])
    with tarfile.open(tmp_path / "vqav2-train-00000.tar") as tar:
        members = list(tar)
    assert [m.name for m in members] == ["000000000.jpg", "000000000.json"]
    assert all(not m.pax_headers for m in members)
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}


def test_same_records_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, [record(n) for n in range(5)], shard_samples=2, arguments={"x": 1})
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b").iterdir())
    assert len(files) == 3 * 4 + 1
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_index_written_on_the_way_is_the_one_of_the_finished_shard(tmp_path: Path) -> None:
    info = write(tmp_path, [record(n, size=n * 300) for n in range(8)], shard_samples=5)
    for shard in info.shards:
        index = build_index(tmp_path / shard.name)
        idx = np.fromfile(tmp_path / (shard.name + ".idx"), "<u8")
        cnt = np.fromfile(tmp_path / (shard.name + ".cnt"), "<u4").reshape(-1, 2)
        crc = np.fromfile(tmp_path / (shard.name + ".crc"), "<u4")
        data = (tmp_path / shard.name).read_bytes()
        assert index.offsets.tolist() == idx.tolist()
        assert index.counts.tolist() == cnt[:, 0].tolist()
        assert index.pictures.tolist() == cnt[:, 1].tolist()
        assert index.checksums.tolist() == crc.tolist()
        assert crc.tolist() == [crc32(data[begin:end]) for begin, end in pairwise(idx.tolist())]
        assert shard.sha256 == file_sha256(tmp_path / shard.name)


def test_shards_are_cut_by_bytes_too(tmp_path: Path) -> None:
    writer = DatasetWriter(
        tmp_path, name="vqav2", kind="vqa", split="train", limits=ShardLimits(bytes=10_000)
    )
    info = writer.write(record(n, size=3000) for n in range(6))
    assert [shard.samples for shard in info.shards] == [2, 2, 2]


def test_another_data_set_is_not_overwritten_unasked(tmp_path: Path) -> None:
    write(tmp_path, [record(n) for n in range(5)], shard_samples=2)
    told = r"holds another data set \(vqav2 vqa train\).*\(vqav2 vqa val\).*choose another folder"
    with pytest.raises(ValueError, match=told):
        write(tmp_path, [record(1)], split="val")
    assert open_dataset(tmp_path).split == "train"


def test_the_same_data_set_is_written_anew_and_nothing_old_stays(tmp_path: Path) -> None:
    write(tmp_path, [record(n) for n in range(5)], shard_samples=2)
    write(tmp_path, [record(n) for n in range(2)], shard_samples=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "dataset.json",
        "vqav2-train-00000.tar",
        "vqav2-train-00000.tar.cnt",
        "vqav2-train-00000.tar.crc",
        "vqav2-train-00000.tar.idx",
    ]


def test_what_ends_half_way_is_not_taken_for_a_data_set(tmp_path: Path) -> None:
    def records() -> Iterator[SampleRecord]:
        yield from (record(n) for n in range(3))
        raise KeyboardInterrupt

    write(tmp_path, [record(1)])
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, records(), shard_samples=2)
    assert not list(tmp_path.glob("*.partial"))
    with pytest.raises(ValueError, match="its preparation did not end"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("records", "options", "message"),
    [
        ([], {}, "no samples to write"),
        ([record(1), record(1)], {}, r"id id\.1 comes twice"),
        ([SampleRecord(id="a", members=[("JPG", b"")], json={"annotations": []})], {},
         "lower case"),
        ([SampleRecord(id="a", members=[], json={})], {}, 'needs a list "annotations"'),
        ([record(1, images=["png"])], {}, r"images \['png'\] are not among its members"),
        ([record(1)], {"name": "a/b"}, "name 'a/b': it becomes part of file names"),
    ],
)  # fmt: skip
def test_wrong_input_is_refused(
    tmp_path: Path, records: list[SampleRecord], options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write(tmp_path, records, **options)
    assert not list(tmp_path.glob("*.partial"))


def test_order_of_samples_is_a_fixed_mixture() -> None:
    ids = [str(n) for n in range(100)]
    order = shard_order(ids)
    assert sorted(order) == sorted(ids)
    assert order == shard_order(reversed(ids)) == shard_order(ids, seed=0)
    assert order != ids
    other = shard_order(ids, seed=2**64 - 1)
    assert sorted(other) == sorted(ids)
    assert other not in (ids, order)


def test_half_a_character_is_named_with_its_sample(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sample id\.1: its json holds half a character \('\\ud8"):
        write(tmp_path, [record(1, source="q\ud800")])
