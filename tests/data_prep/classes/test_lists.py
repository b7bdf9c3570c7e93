"""Lists of pictures: DTD's text files and CoOp's JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.toys.class_folders import classes, labels, pack_folders, photo
from tests.toys.files import write
from tests.toys.shards import Check


@pytest.fixture
def dtd(tmp_path: Path) -> Path:
    """dtd/images, and labels/{train,val,test}1.txt."""
    names = [f"{name}/{name}_{n:04d}.jpg" for n in range(6) for name in ("banded", "dotted")]
    for number, name in enumerate(names):
        write(tmp_path / "dtd/images" / name, photo(number))
    for index, split in enumerate(("train", "val", "test")):
        lines = "".join(f"{name}\n" for name in names[4 * index : 4 * index + 4])
        write(tmp_path / "dtd/labels" / f"{split}1.txt", lines)
    return tmp_path / "dtd"


def lists(dtd: Path, *splits: str) -> list[str]:
    return ["--lists", *(f"{split}={dtd}/labels/{split}1.txt" for split in splits)]


def test_dtd(dtd: Path, tmp_path: Path, check: Check) -> None:
    out = tmp_path / "out"
    assert pack_folders(dtd / "images", out, *lists(dtd, "train", "val", "test")) == 0
    for index, split in enumerate(("train", "val", "test")):
        assert classes(out / split) == ("banded", "dotted")
        wanted = {f"{name}/{name}_{n:04d}.jpg": name
                  for n in (2 * index, 2 * index + 1) for name in ("banded", "dotted")}  # fmt: skip
        assert labels(out / split) == wanted
    assert check(out) == (0, {})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("banded/banded_0000.jpg", "train1.txt, line 1 and val1.txt, line 5: "
         "banded/banded_0000.jpg is in train and in val; keep it in one split"),
        ("banded/Banded_0009.jpg", "is missing; line 5 of train1.txt, val1.txt names it"),
    ],
)  # fmt: skip
def test_lines_that_do_not_fit(
    line: str, message: str, dtd: Path, tmp_path: Path, refused: Any
) -> None:
    with (dtd / "labels/val1.txt").open("a") as file:
        file.write(f"{line}\n\n")
    refused(pack_folders(dtd / "images", tmp_path / "out", *lists(dtd, "train", "val")), message)
    assert not (tmp_path / "out").exists()


def test_lines_do_not_leave_the_folder(dtd: Path, tmp_path: Path, refused: Any) -> None:
    write(dtd / "secret/x.jpg", photo(1))
    with (dtd / "labels/train1.txt").open("a") as file:
        file.write("../secret/x.jpg\n")
    refused(pack_folders(dtd / "images", tmp_path / "out", *lists(dtd, "train")), "is outside")
    assert not (tmp_path / "out").exists()
