"""Bytes of a sample that are not those that were indexed: a bad sample, or fetched again."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from data_prep.cli import main
from data_prep.packing.writer import SampleRecord, write_dataset
from tests.toys.pictures import jpeg, noise
from tests.toys.shards import by_hand, content
from tests.toys.streams import ToyTask, records, train_stream
from tests.toys.web import Web
from vlds.data.errors import ErrorPolicy, ShardError
from vlds.data.shards.cache import ShardCache
from vlds.data.shards.sample import feature_bytes
from vlds.data.shards.store import open_dataset
from vlds.data.shards.writing import index_folder
from vlds.data.streams.source import Source
from vlds.schema import SkipSample

LENIENT = ErrorPolicy(max_bad_fraction=1.0)
CHANGED = r"its bytes are not those that were indexed \(another crc32\); copy the shard again"


def bmp(number: int) -> bytes:
    """A picture in a format without checksums."""
    return noise(number, form="BMP")


def with_features(num: int) -> Iterator[SampleRecord]:
    for record in records("hurt", num):
        grid = np.full((4, 3), 1.0, np.float16)
        yield SampleRecord(
            id=record.id, members=[("features.npy", feature_bytes(grid))], json=record.json
        )


def flip(tar: Path, sample: int, place: int) -> None:
    """Change a bit of a sample, `place` bytes after its start or, if negative, before its end."""
    offsets = np.fromfile(f"{tar}.idx", "<u8")
    data = bytearray(tar.read_bytes())
    at = int(offsets[sample + (place < 0)]) + place
    data[at] ^= 1
    tar.write_bytes(bytes(data))


@pytest.mark.parametrize("content", ["picture", "features", "json", "padding"])
def test_a_flipped_bit_is_a_bad_sample(tmp_path: Path, content: str) -> None:
    folder = tmp_path / "data"
    sample_records = with_features(30) if content == "features" else records("hurt", 30, bmp)
    write_dataset(
        folder, name="hurt", kind="vqa", split="train", records=sample_records, shard_samples=10
    )
    tar = folder / "hurt-train-00001.tar"
    place = {"picture": 900, "features": 645, "padding": -1}.get(content)
    if place is None:  # a letter of the question in the sample's json
        begin = int(np.fromfile(f"{tar}.idx", "<u8")[4])
        place = tar.read_bytes().index(b"what is", begin) - begin
    flip(tar, 4, place)
    dataset = open_dataset(folder)
    with pytest.raises(SkipSample, match=f"sample hurt-train 000000014 .*{CHANGED}"):
        dataset.read(14)
    image = {"image": None} if content == "features" else {}
    source = Source("red", ToyTask(), [dataset])
    stream = train_stream([source], errors=LENIENT, ledger=tmp_path / "ledger", **image)
    ids = [id for batch in islice(stream, 23) for id in batch.ids]
    assert len(ids) == 184
    assert not any(id.startswith("hurt-14-") for id in ids)
    (line,) = (tmp_path / "ledger").read_text().splitlines()
    assert (json.loads(line)["shard"], json.loads(line)["key"]) == (tar.name, "number 14")
    assert main(["verify", str(folder), "--workers", "1"]) == 1
    bad = json.loads((folder / "quarantine.jsonl").read_text("utf-8"))
    assert (bad["shard"], bad["i"]) == (tar.name, 4)


def test_a_copy_that_changed_is_fetched_again(
    web: Web, folders: dict[str, Path], cache: ShardCache
) -> None:
    local, remote = open_dataset(folders["small"]), open_dataset(web.url("small"), cache)
    assert remote.read(0) == local.read(0)
    (copy,) = (p for p in cache.folder.glob("*.tar") if p.stat().st_size)
    data = bytearray(copy.read_bytes())
    data[700] ^= 1
    data[-9000:] = bytes(9000)  # and a header
    copy.write_bytes(bytes(data))
    assert remote.read(0) == local.read(0)
    assert remote.read(3) == local.read(3)
    assert web.requests["small-train-00000.tar"] == 2


def test_a_sample_that_was_wrong_from_the_start_is_not_fetched_again_and_again(
    web: Web, folders: dict[str, Path], cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = open_dataset(web.url("small"), cache)
    wrong = [replace(index, checksums=index.checksums + 1) for index in remote._indexes]
    monkeypatch.setattr(remote, "_indexes", wrong)
    for _ in range(3):
        with pytest.raises(SkipSample, match="its bytes are not those that were indexed"):
            remote.read(0)
    assert web.requests["small-train-00000.tar"] == 1


@pytest.mark.parametrize(
    ("suffix", "change", "fault"),
    [
        *((suffix, slice(-4), "samples take") for suffix in (".idx", ".cnt", ".crc")),
        (".idx", slice(None, None, -1), "do not ascend within"),
        (".cnt", slice(None, None, -1), "counts "),
    ],
)
def test_an_index_that_cannot_be_the_shards(
    folders: dict[str, Path], tmp_path: Path, suffix: str, change: slice, fault: str
) -> None:
    """Its hash is right: somebody has made it so."""
    folder = Path(shutil.copytree(folders["small"], tmp_path / "small"))
    path = folder / f"small-train-00000.tar{suffix}"
    data = path.read_bytes()[change]
    path.write_bytes(data)
    about = json.loads((folder / "dataset.json").read_text("utf-8"))
    about["shards"][0][f"{suffix[1:]}_sha256"] = sha256(data).hexdigest()
    (folder / "dataset.json").write_text(json.dumps(about), "utf-8")
    with pytest.raises(ShardError, match=rf"small-train-00000\.tar{suffix}.*{fault}"):
        open_dataset(folder)


@pytest.mark.parametrize("odd", [7, None, ["a"], "", "a\u2028b", "a\nb", "\x7f", "\ud800"])
@pytest.mark.parametrize("where", ["sample", "annotation"])
def test_ids_that_are_not_a_line_of_text(tmp_path: Path, odd: object, where: str) -> None:
    """Refused when shards are written and indexed."""
    annotation = {"id": odd if where == "annotation" else "1", "question": "?", "answer": "a"}
    fields = {"id": odd if where == "sample" else "x", "annotations": [annotation]}
    options = {"name": "odd", "kind": "vqa", "split": "train"}
    if odd != "\ud800":  # no file can hold it as it is
        record = SampleRecord(id="x", members=[("png", noise(1))], json=fields)
        with pytest.raises(ValueError, match=r"odd-train-00000\.tar, sample 000000000: the .*id"):
            write_dataset(tmp_path / "new", records=[record], **options)
    folder = tmp_path / "there"
    folder.mkdir()
    with tarfile.open(folder / "odd-train-00000.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        text = json.dumps(fields).encode()
        member = tarfile.TarInfo("000000000.json")
        member.size = len(text)
        tar.addfile(member, io.BytesIO(text))
    message = r"sample 0: (the .* (text expected|a control character)|unusable json .*surrogate)"
    with pytest.raises(ShardError, match=message):
        index_folder(folder, **options)


def test_ids_in_shards_that_nobody_indexed_again(tmp_path: Path) -> None:
    samples = [[(f"{n}.jpg", jpeg()), (f"{n}.json", content(n, id=n))] for n in range(3)]
    folder = by_hand(tmp_path / "a", [[member for one in samples for member in one]], indexed=False)
    source = Source("red", ToyTask(), [open_dataset(folder)])
    said = r"none of the first 3 samples .*the sample's id is 0, text expected"
    with pytest.raises(ValueError, match=said):
        train_stream([source])
