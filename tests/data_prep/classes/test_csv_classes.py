"""Tables of pictures and classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.toys.class_folders import classes, labels, pack_folders, photo
from tests.toys.files import write
from tests.toys.shards import Check, packed
from vlds.data.shards.info import DatasetInfo


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(6):
        write(tmp_path / "photos/deep" / f"{number}.jpg", photo(number))
    return tmp_path / "photos"


def pack(photos: Path, out: Path, text: str, *more: str, name: str = "rows.csv") -> int:
    file = write(photos.parent / name, text)
    return pack_folders(photos, out, "--annotations", str(file), *more, command="csv-classes")


def test_a_spreadsheet(photos: Path, tmp_path: Path, check: Check) -> None:
    """A byte-order mark, semicolons, quotes around a separator, an extension left out."""
    text = '\ufeffphoto;species;width\ndeep/0.jpg;"ant; red";3\ndeep\\1;bee;4\n./deep/2.jpg;bee;5\n'
    fields = ("--image-field", "photo", "--label-field", "species")
    assert pack(photos, tmp_path / "out", text, *fields) == 0
    assert classes(tmp_path / "out") == ("ant; red", "bee")
    wanted = {"deep/0.jpg": "ant; red", "deep/1.jpg": "bee", "deep/2.jpg": "bee"}
    assert labels(tmp_path / "out") == wanted
    assert packed(tmp_path / "out")["deep/1.jpg"].extra["source"] == {"width": "4"}
    assert check(tmp_path / "out") == (0, {})


def test_a_file_for_each_split(photos: Path, tmp_path: Path, refused: Any) -> None:
    for split, numbers in (("train", (0, 1)), ("val", (2, 3))):
        rows = "".join(f"deep/{n}.jpg\t{'ab'[n % 2]}\n" for n in numbers)
        write(tmp_path / f"{split}.tsv", f"image\tlabel\n{rows}")
    files = [f"{split}={tmp_path}/{split}.tsv" for split in ("train", "val")]
    given = ["--annotations", *files, "--name", "mine"]
    assert pack_folders(photos, tmp_path / "out", *given, command="csv-classes") == 0
    assert len(labels(tmp_path / "out/val")) == 2
    assert DatasetInfo.load(tmp_path / "out/val").name == "mine"
    given = ["--annotations", files[0], f"{tmp_path}/val.tsv"]
    code = pack_folders(photos, tmp_path / "x", *given, command="csv-classes")
    refused(code, "give every file a split, and no --split-field")


def test_rows_that_cannot_be_used_are_dropped(photos: Path, tmp_path: Path) -> None:
    text = "image,label\ndeep/0.jpg,a\ndeep/1.jpg,b\ndeep/0,a\n,b\ndeep/2.jpg,\n"
    assert pack(photos, tmp_path / "out", text) == 0
    assert {drop["id"]: drop["reason"] for drop in DatasetInfo.load(tmp_path / "out").dropped} == {
        "rows.csv, line 4": "the picture and class of an earlier row",
        "rows.csv, line 5": "no picture",
        "rows.csv, line 6": "no class",
    }


@pytest.mark.parametrize(
    ("text", "more", "message"),
    [
        ("path,label\nx,a\n", (), "line 2: no field 'image'; it has path, label. Name the columns"),
        ("image,label\ndeep/0.jpg,a\ndeep/1.jpg,b\ndeep/0,b\n", (),
         "rows.csv, line 2 and rows.csv, line 4: deep/0.jpg has two classes, 'a' and 'b'"),
        ("image,label,s\ndeep/0.jpg,a,train\ndeep/1.jpg,b,train\ndeep/0.jpg,a,test\n",
         ("--split-field", "s"), "deep/0.jpg is in train and in test; keep it in one split"),
        ("image,label\ndeep/0.jpg,Ant\ndeep/1.jpg,ant\n", (), "'Ant' and 'ant' differ in case"),
        ("image,label\ndeep/0.jpg,a\n../rows.csv,b\n", (), "line 3 of rows.csv names it"),
    ],
)  # fmt: skip
def test_tables_that_do_not_fit(
    text: str, more: tuple[str, ...], message: str, photos: Path, tmp_path: Path,
    refused: Any,
) -> None:  # fmt: skip
    refused(pack(photos, tmp_path / "out", text, *more), message)
    assert not (tmp_path / "out").exists()
