"""Rows and pictures that stand twice are counted, and equal pictures do not leak into the test."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.toys.own_rows import photos, prepare, questions
from tests.toys.shards import packed

NAMES = [f"{number}.jpg" for number in range(10)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten pictures, each of them once more under another name."""
    images = photos(tmp_path / "photos", *NAMES)
    for name in NAMES:
        shutil.copy(images / name, images / f"copy-{name}")
    return tmp_path


def test_equal_pictures_go_to_one_side(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = questions(*NAMES, *(f"copy-{name}" for name in NAMES))
    assert prepare(folder, rows, "--split-by-image", "0.5") == 0
    parts = [packed(folder / "out" / part) for part in ("train", "test")]
    assert all(parts)
    for part in parts:
        assert {name for name in NAMES if name in part} == {
            name.removeprefix("copy-") for name in part if name.startswith("copy-")
        }
    told = capsys.readouterr()
    assert "10 pictures have the bytes of another one: 0.jpg = copy-0.jpg, " in told.out
    assert "and 5 more" in told.out
    assert "warning" not in told.err


def test_a_column_that_splits_equal_pictures_is_warned_of(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ("0,q,x,train", "copy-0,q,x,test", "1,q,x,test", "1,r,x,train", "2,q,x,test")
    rows = "\n".join(("image,question,answer,part", *lines))
    assert prepare(folder, rows, "--split-field", "part") == 0
    told = capsys.readouterr().err
    assert "warning: 2 pictures or groups are in more than one split: " in told
    assert "copy-0.jpg (test) and 0.jpg (train), 1.jpg (test) and 1.jpg (train);" in told
    rows = "image,question,answer,part,patient\n0,q,x,train,p1\n1,q,x,test,p1\n"
    more = ("--split-field", "part", "--group-field", "patient")
    assert prepare(folder, rows, *more) == 0
    assert "split: patient p1: 1.jpg (test) and 0.jpg (train);" in capsys.readouterr().err


def test_what_an_earlier_command_has_written(
    folder: Path, capsys: pytest.CaptureFixture[str], refused: Any
) -> None:
    rows, sizes = questions(*NAMES), ["--split-sizes", "val=0.3", "test=0.3"]
    assert prepare(folder, rows, *sizes) == 0
    count = len(packed(folder / "out" / "val"))
    assert "of an earlier" not in capsys.readouterr().out
    assert prepare(folder, rows, *sizes) == 0
    told = f"out/val holds {count} samples of an earlier command; these replace them\n"
    assert told in capsys.readouterr().out
    # Pictures of the old test split would be among the new ones.
    code = prepare(folder, rows, "--split-sizes", "val=0.3")
    refused(code, "holds test of an earlier command, whose pictures")
    assert len(packed(folder / "out" / "val")) == count
    # A column may name one split at a time.
    later = "image,question,answer,part\n0.jpg,q,x,last\n"
    assert prepare(folder, later, "--split-field", "part") == 0
    told = "out holds test and train and val of an earlier command, too\n"
    assert told in capsys.readouterr().out
    shutil.rmtree(folder / "out")
    assert prepare(folder, rows) == prepare(folder, rows, *sizes) - 2 == 0
    assert "out holds a data set itself" in capsys.readouterr().err
