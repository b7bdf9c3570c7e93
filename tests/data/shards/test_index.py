"""dataset.json and the index files of shards: written, read, rebuilt, refused when wrong."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.toys.class_folders import change_info
from vlds.data.errors import ShardError
from vlds.data.shards.info import DatasetInfo
from vlds.data.shards.shard_index import build_index, load_index
from vlds.data.shards.store import open_dataset
from vlds.data.shards.writing import index_folder


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the small data set, to be damaged."""
    return Path(shutil.copytree(folders["small"], tmp_path / "small"))


def test_idx_has_energons_layout(folder: Path) -> None:
    tar_path = folder / "small-train-00000.tar"
    starts, last = [], None
    with tarfile.open(tar_path) as tar:
        for member in tar:
            key = member.name.split(".")[0]
            if key != last:
                starts.append(member.offset)
                last = key
        starts.append(tar.offset)
    written = np.frombuffer((folder / "small-train-00000.tar.idx").read_bytes(), "<u8")
    assert written.tolist() == starts
    counts = np.frombuffer((folder / "small-train-00000.tar.cnt").read_bytes(), "<u4")
    assert counts.reshape(-1, 2).tolist() == [[1, 1], [2, 1], [3, 1], [4, 1]]


def test_index_is_made_from_the_shard_where_it_is_missing(folder: Path) -> None:
    info = DatasetInfo.load(folder)
    before = [load_index(folder, shard) for shard in info.shards]
    for path in [*folder.glob("*.idx"), *folder.glob("*.cnt")]:
        path.unlink()
    for shard, index in zip(info.shards, before, strict=True):
        again = load_index(folder, shard)
        assert again.offsets.tolist() == index.offsets.tolist()
        assert again.counts.tolist() == index.counts.tolist()


def test_tars_of_other_writers_are_indexed_in_place(folder: Path) -> None:
    before = DatasetInfo.load(folder)
    for path in folder.iterdir():
        if path.suffix != ".tar":
            path.unlink()
    info = index_folder(folder, name="small", kind="vqa", split="train")
    assert info.shards == before.shards
    assert open_dataset(folder).read(6).id == "small-6"


def no_json(shard: Path) -> None:
    with tarfile.open(shard, "w") as tar:
        tar.addfile(tarfile.TarInfo("0.jpg"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_json, "sample 0 has no member"),
        (lambda shard: os.truncate(shard, shard.stat().st_size // 2), "cut inside|ends at byte"),
    ],
)
def test_what_cannot_be_indexed_is_named(
    folder: Path, damage: Callable[[Path], None], message: str
) -> None:
    shard = folder / "small-train-00001.tar"
    damage(shard)
    with pytest.raises(ShardError, match=rf"small-train-00001\.tar.*({message})"):
        build_index(shard)


def pipe(shard: Path) -> None:
    shard.unlink()
    os.mkfifo(shard)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda shard: os.truncate(shard, 5000), r"\.tar has \d+ bytes.*is cut; copy it"),
        (lambda shard: shard.unlink(), r"\.tar cannot be read \(No such file"),
        (pipe, ".*a named pipe, not a regular file"),
        (lambda shard: shutil.copy(shard.with_name("small-train-00001.tar.idx"), f"{shard}.idx"),
         r"\.tar\.idx is not the one"),
    ],
)  # fmt: skip
def test_a_damaged_shard_is_named(
    folder: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(folder / "small-train-00000.tar")
    with pytest.raises(ShardError, match=rf"small-train-00000{message}"):
        open_dataset(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schema": 3}, "schema 3, this program reads 2; .*program's version that wrote it"),
        ({"dropped": [{"id": "x"}]}, "dataset.json: .*dropped"),
        ({"dropped": [{"id": 5, "reason": "x"}]}, "dataset.json: .*dropped"),
        ({"schema": 1}, "schema 1, this program reads 2; index it again: `vlds data index FOLDER "
         "--name small --kind vqa --split train`"),
        ({"schema": 1, "name": "$(date)"}, r"FOLDER --name '\$\(date\)' --kind"),
        ({"smaples": 1}, "unknown field smaples; known are"),
        ({"samples": "7"}, "samples is '7', a valid integer expected"),
        ({"samples": 8}, "samples is 8, but its shards hold 7"),
        ({"shards": [{"name": "x.tar"}]},
         r"shards\[0\]\.samples is missing; shards\[0\]\.annotations is missing"),
    ],
)  # fmt: skip
def test_wrong_dataset_json_is_refused(folder: Path, fields: dict[str, Any], message: str) -> None:
    change_info(folder, **fields)
    with pytest.raises(ValueError, match=message):
        open_dataset(folder)


def test_folder_without_data_set_says_what_is_there(folder: Path) -> None:
    about = folder / "dataset.json"
    for place, message in (
        (folder / "nothing", "no such folder"),
        (about, r"dataset.json: no such folder; check the path"),
        (folder.parent, f"data sets inside it: {folder}"),
    ):
        with pytest.raises(ValueError, match=message):
            open_dataset(place)
    about.write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        open_dataset(folder)
    about.unlink()
    with pytest.raises(ValueError, match="did not end"):
        open_dataset(folder)
