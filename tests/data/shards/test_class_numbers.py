"""The class of each sample is in the index: no picture is read to find it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.cli import main
from data_prep.packing.writer import SampleRecord, write_dataset
from tests.toys.class_folders import CLASSES, change_info, write_classes
from tests.toys.pictures import jpeg
from vlds.data.errors import ShardError
from vlds.data.shards.cache import ShardCache
from vlds.data.shards.info import NO_CLASS, DatasetInfo
from vlds.data.shards.store import few_shots, open_dataset


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


def test_at_a_url(tmp_path: Path, cache: ShardCache) -> None:
    folder = write_classes(tmp_path / "toy")
    remote = open_dataset(f"file://{folder}", cache)
    assert remote.class_numbers().tolist() == [1, 2, 0, 1, 2]
    assert not list(cache.folder.rglob("*.tar"))  # no shard was fetched


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


def test_other_kinds_may_list_their_labels(tmp_path: Path) -> None:
    """Of a list of answers, say: their samples have many annotations, and no class in the index."""
    annotations = [{"id": "a", "question": "?", "answers": ["no"]}]
    record = SampleRecord(id="x", members=[("jpg", jpeg())], json={"annotations": annotations})
    write_dataset(
        tmp_path / "toy", name="toy", kind="vqa", split="train", records=[record],
        classes=("yes", "no"),
    )  # fmt: skip
    assert DatasetInfo.load(tmp_path / "toy").classes == ("yes", "no")
    assert open_dataset(tmp_path / "toy").read(0).id == "x"
    given = ["index", str(tmp_path / "toy"), "--name", "toy", "--kind", "vqa", "--split", "train"]
    assert main(given) == 0
    assert DatasetInfo.load(tmp_path / "toy").classes == ("yes", "no")


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


def test_stats_and_preview(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_classes(tmp_path / "toy")
    capsys.readouterr()
    assert main(["stats", str(folder)]) == 0
    assert "classes               3   1 to 2 samples each" in capsys.readouterr().out
    assert main(["preview", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.strip() for line in lines].count("zebra") == 1
