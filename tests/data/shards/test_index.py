"""What an index holds of a data set, and samples read by number."""

from __future__ import annotations

import io
import os
import pickle
import re
import shutil
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_prep.cli import main
from data_prep.packing.writer import SampleRecord, write_dataset
from tests.toys.class_folders import CLASSES, change_info, write_classes
from tests.toys.pictures import jpeg
from vlds.data.errors import ShardError
from vlds.data.shards.info import NO_CLASS, DatasetInfo
from vlds.data.shards.store import few_shots, open_dataset
from vlds.data.shards.writing import index_folder
from vlds.data.streams.assemble import ImageStack
from vlds.schema import SkipSample

# dataset.json and the index files of shards: written, read, rebuilt, refused when wrong.


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


def test_tars_of_other_writers_are_indexed_in_place(folder: Path) -> None:
    before = DatasetInfo.load(folder)
    for path in folder.iterdir():
        if path.suffix != ".tar":
            path.unlink()
    info = index_folder(folder, name="small", kind="vqa", split="train")
    assert info.shards == before.shards
    assert open_dataset(folder).read(6).id == "small-6"


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


# Samples by number; damage is named, not passed over.


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def written(folder: Path, members: list[tuple[str, bytes]], **fields: object) -> Path:
    record = SampleRecord(id="x", members=members, json={"annotations": [{"id": "x-0"}], **fields})
    write_dataset(folder, name="one", kind="nlvr2", split="dev", records=[record])
    return folder


def test_pairs_keep_the_order_of_the_json(tmp_path: Path) -> None:
    members = [("right.png", b"right"), ("left.jpg", b"left")]
    sample = open_dataset(written(tmp_path, members, images=["left.jpg", "right.png"])).read(0)
    assert sample.images == (b"left", b"right")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no array", "not a .npy file"),
        (npy(np.ones((2, 3), np.float16))[:-4], "buffer|reshape"),
        (npy(np.ones((2, 3), np.int32)), "array of floats"),
        (npy(np.ones((2, 3, 4), np.float16)), "expected"),
        (npy(np.ones((2, 3), "f2")).replace(b"{", b"["), "header of the .npy file is damaged"),
    ],
)
def test_wrong_features_are_a_bad_sample(tmp_path: Path, data: bytes, message: str) -> None:
    dataset = open_dataset(written(tmp_path, [("features.npy", data)]))
    with pytest.raises(SkipSample, match=message):
        dataset.read(0)


@pytest.mark.parametrize(
    "arrays",
    [
        {"features.npy": np.arange(6, dtype=np.float16).reshape(2, 3)},
        {"features.npy": np.ones((48, 4), np.float16)},  # no padding
        {"left.features.npy": np.ones((2, 3), np.float32),
         "right.features.npy": np.zeros((2, 3), np.float16)},
    ],
)  # fmt: skip
def test_features_are_stacked_as_float16(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    members = [(name, npy(array)) for name, array in arrays.items()]
    sample = open_dataset(written(tmp_path, members)).read(0)
    assert sample.images == ()
    stack = ImageStack(1)
    assert stack.add(sample.features) == range(len(arrays))
    tensor = stack.images()
    assert tensor is not None
    assert tensor.dtype == torch.float16
    np.testing.assert_array_equal(tensor.numpy(), np.stack(list(arrays.values())))


@pytest.mark.parametrize(
    ("place", "message"),
    [(0, "wrong checksum"), (3584, "wrong checksum"), (None, "the file ends at byte 2000")],
    ids=["first header", "second header", "cut"],
)
def test_damage_around_features_is_found(tmp_path: Path, place: int | None, message: str) -> None:
    dataset = open_dataset(written(tmp_path, [("features.npy", npy(np.ones((40, 32), "f2")))]))
    (shard,) = tmp_path.glob("*.tar")
    with open(shard, "r+b") as file:
        if place is None:
            file.truncate(2000)
        else:
            file.seek(place)
            file.write(b"garbage")
    with pytest.raises(ShardError, match=f"sample 0: .*{message}"):
        dataset.read(0)


def test_pickled_it_opens_its_own_files(folders: dict[str, Path]) -> None:
    dataset = open_dataset(folders["small"])
    expected = dataset.read(3)
    assert pickle.loads(pickle.dumps(dataset)).read(3) == expected


# The class of each sample is in the index: no picture is read to find it.


def test_the_index_knows_each_class(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "toy")
    assert open_dataset(folder).class_numbers().tolist() == [1, 2, 0, 1, 2]
    cls = np.frombuffer((folder / "toy-train-00001.tar.cls").read_bytes(), "<u4")
    assert cls.tolist() == [1, 2]
    unlabelled = open_dataset(write_classes(tmp_path / "other", [None, "cat"]))
    assert unlabelled.class_numbers().tolist() == [NO_CLASS, 2]
    unlabelled = open_dataset(write_classes(tmp_path / "third", [None, None]))
    with pytest.raises(ValueError, match=r"shots: 1, but no sample of data set .* has a label"):
        few_shots(unlabelled, 1, 0)
    folder = write_classes(tmp_path / "fourth", classes=None)
    assert not list(folder.glob("*.cls"))
    with pytest.raises(ValueError, match="no classes; name one of kind image_class"):
        open_dataset(folder).class_numbers()


def test_a_lost_file_is_made_again_and_a_changed_one_refused(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "toy")
    file = folder / "toy-train-00000.tar.cls"
    content = file.read_bytes()
    file.unlink()
    assert open_dataset(folder).class_numbers().tolist() == [1, 2, 0, 1, 2]
    file.write_bytes(content[::-1])
    with pytest.raises(ShardError, match=r"tar\.cls is not the one that dataset\.json describes"):
        open_dataset(folder)


def test_indexing_again_keeps_the_order_of_the_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_classes(tmp_path / "toy")
    given = ["index", str(folder), "--name", "toy", "--kind", "image_class", "--split", "train"]
    before = DatasetInfo.load(folder)
    assert main(given) == 0
    assert DatasetInfo.load(folder) == before
    (folder / "dataset.json").unlink()
    assert main(given) == 0
    assert DatasetInfo.load(folder).classes == ("ant", "cat", "zebra")
    assert open_dataset(folder).class_numbers().tolist() == [0, 1, 2, 0, 1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["dog"], "'dog' is not one of the 3 classes"),
        ([5], "its label is 5, text expected"),
        (["ant", "cat"], "it has 2 annotations; a picture of a class has one"),
    ],
)
def test_labels_that_are_no_class_are_not_written(
    labels: Sequence[Any], message: str, tmp_path: Path
) -> None:
    annotations = [{"id": str(number), "label": label} for number, label in enumerate(labels)]
    record = SampleRecord(id="x", members=[("jpg", jpeg())], json={"annotations": annotations})
    options = {"name": "toy", "kind": "image_class", "split": "train", "classes": CLASSES}
    with pytest.raises(ValueError, match=re.escape(message)):
        write_dataset(tmp_path / "toy", records=[record], **options)
    assert not (tmp_path / "toy/dataset.json").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"classes": ["a", "a", "b"]}, "classes holds a name twice"),
        ({"classes": None}, "shards have cls_sha256 if the kind is image_class and classes is"),
        ({"kind": "entailment"}, "shards have cls_sha256 if the kind is image_class"),
        ({"classes": "ant"}, "classes is 'ant'"),
        ({"classes": [1]}, "classes"),
        (
            {"classes": ["zebra", "ant"]},
            "class 2 in the index of a shard, but dataset.json lists 2",
        ),
    ],
)
def test_dataset_json_is_checked(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "toy")
    change_info(folder, **fields)
    with pytest.raises(ValueError, match=re.escape(message)):
        open_dataset(folder).class_numbers()
