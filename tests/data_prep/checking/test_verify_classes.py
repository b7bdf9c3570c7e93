"""`verify` compares the classes of the samples, of the index and of dataset.json."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.toys.class_folders import change_info, write_classes
from tests.toys.shards import Check
from vlds.data.shards.info import DatasetInfo
from vlds.data.shards.shard_index import build_index
from vlds.data.shards.writing import describe_shard


def test_all_is_well(tmp_path: Path, check: Check) -> None:
    assert check(write_classes(tmp_path / "toy")) == (0, {})
    assert check(write_classes(tmp_path / "test", [None, None])) == (0, {})


def test_a_label_that_is_not_listed(tmp_path: Path, check: Check) -> None:
    folder = write_classes(tmp_path / "toy")
    change_info(folder, classes=["zebra", "ant"])
    assert check(folder) == (1, {"class unusable": 2})


def test_another_order(tmp_path: Path, check: Check) -> None:
    folder = write_classes(tmp_path / "toy")
    change_info(folder, classes=["ant", "zebra", "cat"])
    assert check(folder) == (1, {"index of another shard": 3})


def test_an_index_with_another_class(tmp_path: Path, check: Check) -> None:
    """As if a program had written both the wrong file and its sha256."""
    folder = write_classes(tmp_path / "toy")
    info = DatasetInfo.load(folder)
    tar = folder / info.shards[0].name
    index = build_index(tar, classes=info.classes)
    assert index.classes is not None
    index.classes[0] = 0
    shards = [vars(describe_shard(tar, index)), vars(info.shards[1])]
    change_info(folder, shards=shards)
    assert check(folder) == (1, {"index of another shard": 1})


def test_labels_that_only_some_have(tmp_path: Path, check: Check) -> None:
    folder = write_classes(tmp_path / "toy", ["ant", None])
    assert check(folder) == (1, {"annotations without a label": 1})
    assert np.frombuffer(next(folder.glob("*.cls")).read_bytes(), "<u4").tolist()[0] == 1
