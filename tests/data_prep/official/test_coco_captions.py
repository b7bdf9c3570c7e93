"""COCO's own caption files: unordered annotations, pictures without captions, a test split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_prep.cli import main
from tests.toys.files import write
from tests.toys.pictures import jpeg
from tests.toys.shards import packed

CAPTIONS = [
    {"image_id": 9, "id": 3, "caption": "A dog. \n"},
    {"image_id": 8, "id": 4, "caption": "A cat"},
    {"image_id": 9, "id": 5, "caption": "Dog\u2028 there"},
    {"image_id": 8, "id": 6, "caption": " "},
]


@pytest.fixture
def src(tmp_path: Path) -> Path:
    src = tmp_path / "coco"
    pictures = [
        {"id": n, "file_name": f"COCO_val2014_{n:012d}.jpg", "height": 24, "width": 40}
        for n in (7, 8, 9)
    ]
    captions = {"info": {}, "images": pictures, "annotations": CAPTIONS}
    write(src / "annotations/captions_val2014.json", captions)
    tested = [{"id": 5, "file_name": "000000000005.jpg"}]
    write(src / "annotations/image_info_test2017.json", {"images": tested})
    for picture in pictures:
        write(src / "val2014" / str(picture["file_name"]), jpeg())
    write(src / "test2017/000000000005.jpg", jpeg())
    return src


def test_captions_are_gathered_by_picture(src: Path, pack_split: Any, output: Any) -> None:
    samples = pack_split("coco-captions --split val", src)
    captions = {key: [a["caption"] for a in s.annotations] for key, s in samples.items()}
    assert captions == {"8": ["A cat"], "9": ["A dog.", "Dog there"]}
    told = output()
    assert "dropped: empty caption: 1" in told
    assert "dropped: no annotation: 1" in told


def test_a_test_split_has_pictures_alone(src: Path, pack_split: Any) -> None:
    (sample,) = pack_split("coco-captions --split test --year 2017", src).values()
    assert sample.id == "5"
    assert list(sample.annotations) == [{"id": "5"}]


def test_a_share_of_the_pictures_is_a_test_set(src: Path, tmp_path: Path, output: Any) -> None:
    """All captions of a picture, and all pictures of the same bytes, go to one side."""
    pictures = [{"id": n, "file_name": f"{n}.jpg"} for n in range(20)]
    for picture in pictures:
        write(src / "val2014" / str(picture["file_name"]), jpeg(width=30 + int(picture["id"]) % 10))
    told = [{"id": n, "image_id": n % 20, "caption": f"dog {n}"} for n in range(40)]
    file = write(tmp_path / "mine.json", {"images": pictures, "annotations": told})
    given = ["--src", str(src), "--split", "val", "--out", str(tmp_path / "out")]
    given += ["--annotations", str(file), "--split-by-image", "0.4"]
    assert main(["coco-captions", *given]) == 0
    parts = [packed(tmp_path / "out" / part) for part in ("train", "test")]
    sides = [{int(key) % 10 for key in part} for part in parts]
    assert all(sides)
    assert not sides[0] & sides[1]
    assert sum(len(part) for part in parts) == 20
    assert all(len(sample.annotations) == 2 for part in parts for sample in part.values())
    assert "10 pictures have the bytes of another one" in output()
