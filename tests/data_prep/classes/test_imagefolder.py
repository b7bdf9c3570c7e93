"""Folders of classes, flat or below folders of splits."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.toys.class_folders import classes, folders, labels, pack_folders, photo
from tests.toys.files import write
from tests.toys.pictures import png, rotated_jpeg
from tests.toys.shards import Check, packed
from vlds.data.shards.info import DatasetInfo


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """EuroSAT's layout: three flat folders of ten pictures."""
    return folders(tmp_path / "EuroSAT", {"River": 10, "AnnualCrop": 10, "Forest": 10})


def test_flat_folders(root: Path, tmp_path: Path, check: Check) -> None:
    write(root / "Forest/deep/er/x.PNG", png())
    write(root / "Forest/turned.jpeg", rotated_jpeg())
    assert pack_folders(root, tmp_path / "out") == 0
    info = DatasetInfo.load(tmp_path / "out")
    assert (info.name, info.kind, info.split, info.samples) == (
        "EuroSAT", "image_class", "train", 32,
    )  # fmt: skip
    assert info.classes == ("AnnualCrop", "Forest", "River")
    assert [source["file"] for source in info.source] == ["names of the pictures"]
    packed_labels = labels(tmp_path / "out")
    assert packed_labels["River/3.jpg"] == "River"
    assert packed_labels["Forest/deep/er/x.PNG"] == "Forest"
    samples = packed(tmp_path / "out")
    assert bytes(samples["River/3.jpg"].images[0]) == (root / "River/3.jpg").read_bytes()
    assert samples["Forest/turned.jpeg"].extra["size"] == [[24, 40]]
    assert check(tmp_path / "out") == (0, {})


def test_folders_of_splits(tmp_path: Path, check: Check) -> None:
    """The same file name in two splits is two pictures."""
    for start, split in ((0, "train"), (5000, "valid"), (9000, "Test")):
        folders(tmp_path / "pets" / split, {"cat": 4, "big dog": 2}, start)
    assert pack_folders(tmp_path / "pets", tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["test", "train", "val"]
    assert {classes(tmp_path / "out" / split) for split in ("train", "val", "test")} == {
        ("big dog", "cat")
    }
    assert labels(tmp_path / "out/val")["valid/cat/1.jpg"] == "cat"
    assert len(labels(tmp_path / "out/test")) == 6
    assert check(tmp_path / "out") == (0, {})


def test_shares_of_each_class(root: Path, tmp_path: Path) -> None:
    sizes = ("--split-sizes", "val=0.2", "test=0.3")
    assert pack_folders(root, tmp_path / "out", *sizes) == 0
    parts = {split: labels(tmp_path / "out" / split) for split in ("train", "val", "test")}
    for split, count in (("train", 5), ("val", 2), ("test", 3)):
        assert set(Counter(parts[split].values()).values()) == {count}, split
    assert len(set().union(*parts.values())) == 30
    assert pack_folders(root, tmp_path / "again", *sizes) == 0
    assert labels(tmp_path / "again/test") == parts["test"]
    assert pack_folders(root, tmp_path / "other", *sizes, "--seed", "1") == 0
    assert labels(tmp_path / "other/test") != parts["test"]


def test_train_gets_the_pictures_of_rare_classes_first(tmp_path: Path, output: Any) -> None:
    root = folders(tmp_path / "in", {"a": 20, "pair": 2, "one": 1})
    assert pack_folders(root, tmp_path / "out", "--split-sizes", "val=0.1", "test=0.1") == 0
    counts = {name: Counter(labels(tmp_path / "out" / name).values()) for name in ("train", "val")}
    assert counts == {"train": {"a": 16, "pair": 1, "one": 1}, "val": {"a": 2, "pair": 1}}
    assert classes(tmp_path / "out/test") == ("a", "one", "pair")
    told = output()
    assert "test: no picture of 2 of 3 classes: 'one', 'pair'\nval: no picture of 1 of 3" in told
    assert told.index("in val: 3 samples") < told.index("in train: 18 samples")


def test_copies_stay_together(tmp_path: Path, output: Any) -> None:
    root = folders(tmp_path / "in", {"a": 12, "b": 12})
    for name in ("a/0.jpg", "a/5.jpg", "a/11.jpg"):
        write(root / name, photo(77))
    for seed in range(5):
        out = tmp_path / f"out{seed}"
        assert pack_folders(root, out, "--split-sizes", "test=0.5", "--seed", str(seed)) == 0
        inside = labels(out / "test").keys() & {"a/0.jpg", "a/5.jpg", "a/11.jpg"}
        assert len(inside) in (0, 3)
    assert "2 pictures have the bytes of another one" in output()


def test_other_files_are_counted(root: Path, tmp_path: Path, output: Any) -> None:
    for name in ("Forest/notes.txt", "Forest/more.txt", "Forest/Thumbs.db", ".DS_Store", "x.jpg",
                 "River/.ipynb_checkpoints/y.jpg", "README"):  # fmt: skip
        write(root / name, b"x")
    assert pack_folders(root, tmp_path / "out") == 0
    said = output()
    assert said.startswith("left out: hidden (2), with the extension .txt (2), ")
    for part in ("with the extension .db (1)", "without an extension (1)",
                 "pictures beside the folders of classes (1)"):  # fmt: skip
        assert part in said
    assert len(labels(tmp_path / "out")) == 30


def test_other_names(root: Path, tmp_path: Path, output: Any) -> None:
    """Their order stays that of the folders."""
    names = {"River": "a river", "AnnualCrop": "some  crop", "Forest": "trees", "Sea": "sea"}
    file = write(tmp_path / "names.json", names)
    assert pack_folders(root, tmp_path / "out", "--class-names", str(file)) == 0
    assert classes(tmp_path / "out") == ("some crop", "trees", "a river")
    assert labels(tmp_path / "out")["River/3.jpg"] == "a river"
    assert "names classes that are not here: 'Sea'" in output()
    assert {"file": "names.json"}.items() <= dict(
        DatasetInfo.load(tmp_path / "out").source[0]
    ).items()


WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "nothing": ((), "in: no folders in it; give the folder that holds one folder for each class"),
    "one class": (("a/x.jpg",), "one class: 'a'; there must be two or more"),
    "empty class": (("a/x.jpg", "b/notes.txt"), "in/b: no picture in it; every folder in"),
    "accents": (("caf\u00e9/x.jpg", "cafe\u0301/y.jpg"), "differ in case or form only"),
    "new in test": (("train/a/x.jpg", "train/b/x.jpg", "test/a/x.jpg", "test/c/x.jpg"),
                    "class 'c' is in test, but not in train; add pictures there"),
    "mixed": (("train/a/x.jpg", "bus/x.jpg"),
              "'train' may be splits or classes, beside 'bus'; give --layout splits"),
    "twice": (("train/a/x.jpg", "Training/b/x.jpg"), "are both the split 'train'; keep one"),
    "no classes": (("train/x.jpg", "test/a/x.jpg"), "no folders of classes in it; "),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_folders_that_do_not_fit(case: str, tmp_path: Path, refused: Any) -> None:
    names, message = WRONG[case]
    (tmp_path / "in").mkdir()
    for number, name in enumerate(names):
        write(tmp_path / "in" / name, photo(number))
    refused(pack_folders(tmp_path / "in", tmp_path / "out"), message)
    assert not (tmp_path / "out").exists()


def test_layouts_may_be_told(tmp_path: Path, refused: Any, output: Any) -> None:
    folders(tmp_path / "in", {"train": 2, "bus": 2})
    assert pack_folders(tmp_path / "in", tmp_path / "out", "--layout", "classes") == 0
    assert classes(tmp_path / "out") == ("bus", "train")
    folders(tmp_path / "in/train", {"a": 2, "b": 2})
    assert pack_folders(tmp_path / "in", tmp_path / "more", "--layout", "splits") == 0
    assert classes(tmp_path / "more/train") == ("a", "b")
    said = output()
    assert "pictures beside the folders of classes (2)" in said
    assert "folders beside those of the splits (1)" in said
    code = pack_folders(tmp_path / "in/train", tmp_path / "x", "--layout", "splits")
    refused(code, "--layout splits: ")


def test_links(root: Path, tmp_path: Path, refused: Any) -> None:
    (root / "Forest/inside.jpg").symlink_to(root / "Forest/0.jpg")
    folders(tmp_path / "elsewhere", {"Sea": 2}, 9000)
    assert pack_folders(root, tmp_path / "out") == 0
    assert "Forest/inside.jpg" in labels(tmp_path / "out")
    (root / "Sea").symlink_to(tmp_path / "elsewhere/Sea")
    said = refused(pack_folders(root, tmp_path / "sea"), "Sea/0.jpg is a link to a file outside")
    assert "(and 1 more such file). Copy it into the folder, or give --images-anywhere" in said
    assert pack_folders(root, tmp_path / "sea", "--images-anywhere") == 0
    assert classes(tmp_path / "sea") == ("AnnualCrop", "Forest", "River", "Sea")


@pytest.mark.parametrize(
    ("link", "target", "message"),
    [
        ("River/gone.jpg", "nowhere", "gone.jpg is a link that leads nowhere; restore or remove"),
        ("River/loop", "..", "loop is a link to a folder that contains it; remove the link"),
    ],
)
def test_bad_links(
    link: str, target: str, message: str, root: Path, tmp_path: Path,
    refused: Any,
) -> None:  # fmt: skip
    (root / link).symlink_to(target)
    refused(pack_folders(root, tmp_path / "out"), message)
    os.remove(root / link)
    os.mkfifo(root / "River/pipe.jpg")
    refused(pack_folders(root, tmp_path / "out"), "pipe.jpg is not a file; restore or remove it")


def test_a_file_in_two_classes_is_refused(tmp_path: Path, refused: Any) -> None:
    folders(tmp_path / "in", {"a": 1, "b": 1}, 0)
    (tmp_path / "in/b/link.jpg").symlink_to("../a/0.jpg")
    code = pack_folders(tmp_path / "in", tmp_path / "out")
    refused(code, "a/0.jpg and b/link.jpg are the same file, and so one picture of two classes")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--split-sizes", "test=0.99"),
         "leaves train no picture of class 'AnnualCrop', which has 10"),
        (("--split-sizes", "test=0.5", "val=0.5"), "the shares add up to 1; leave some"),
        (("--split-sizes", "train=0.5"), "--split-sizes train: the pictures have the splits train"),
        (("--features", "."), "--features: 3 pictures are called '0', in several folders"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit(
    options: tuple[str, ...], message: str, root: Path, tmp_path: Path,
    refused: Any,
) -> None:  # fmt: skip
    refused(pack_folders(root, tmp_path / "out", *options), message)
    assert not (tmp_path / "out").exists()


def test_resume_and_workers_give_the_same_shards(
    root: Path, tmp_path: Path, interrupted: Any, refused: Any
) -> None:
    more = ("--shard-samples", "7")
    assert pack_folders(root, tmp_path / "whole", *more, "--workers", "2") == 0
    words = ["imagefolder", "--images", str(root), "--out", str(tmp_path / "parts")]
    assert interrupted([*words, "--workers", "1", *more]) == 130
    new = write(root / "River/new.jpg", photo(5))
    code = pack_folders(root, tmp_path / "parts", *more, "--resume")
    refused(code, "belongs to a preparation with other files or options")
    new.unlink()
    assert pack_folders(root, tmp_path / "parts", *more, "--resume") == 0
    for path in (tmp_path / "whole").glob("*.tar*"):
        assert path.read_bytes() == (tmp_path / "parts" / path.name).read_bytes()
    assert len(list((tmp_path / "whole").glob("*.cls"))) == 5
