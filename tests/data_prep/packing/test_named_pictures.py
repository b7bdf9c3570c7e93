"""One file is one picture, whatever rows call it: it cannot be in train and in test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from data_prep.packing.picture import find_pictures
from tests.toys.own_rows import photos, prepare, questions
from tests.toys.shards import packed

SPELLINGS = (
    "a.jpg", "./a.jpg", "a", "x/../a.jpg", ".//a.jpg", "x\\..\\a.jpg", "link.jpg", "x/up/a.jpg",
    "hard.jpg",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One picture under many names, and others."""
    others = [f"{number}.jpg" for number in range(12)]
    images = photos(tmp_path / "photos", "a.jpg", "x/b.jpg", *others)
    (images / "link.jpg").symlink_to("a.jpg")
    (images / "x" / "up").symlink_to("..")
    os.link(images / "a.jpg", images / "hard.jpg")
    return tmp_path


def test_spellings_are_one_sample(folder: Path) -> None:
    assert prepare(folder, questions(*SPELLINGS, "x/b.jpg", "x\\b")) == 0
    samples = packed(folder / "out")
    assert sorted(samples) == ["a.jpg", "x/b.jpg"]
    assert len(samples["a.jpg"].annotations) == len(SPELLINGS)


def test_the_order_of_rows_does_not_name_the_picture(folder: Path) -> None:
    names = [find_pictures(folder / "photos", given) for given in (SPELLINGS, SPELLINGS[::-1])]
    assert {name.id for found in names for name in found.values()} == {"a.jpg"}


def test_a_path_through_a_link_is_not_shortened(folder: Path) -> None:
    """x/up/../a.jpg would be x/a.jpg for the eye, and leads out of the folder."""
    photos(folder, "a.jpg")
    found = find_pictures(folder / "photos", ["x/up/../a.jpg", "a.jpg"])
    assert found["x/up/../a.jpg"] != found["a.jpg"]
