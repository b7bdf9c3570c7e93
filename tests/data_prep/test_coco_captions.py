"""COCO's own caption files: unordered annotations, pictures without captions, a test split."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.cli import main
from tests.data_prep.pictures import jpeg, packed, write

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
    write(
        src / "annotations/captions_val2014.json",
        {"info": {}, "images": pictures, "annotations": CAPTIONS},
    )
    tested = [{"id": 5, "file_name": "000000000005.jpg"}]
    write(src / "annotations/image_info_test2017.json", {"images": tested})
    for picture in pictures:
        write(src / "val2014" / str(picture["file_name"]), jpeg())
    write(src / "test2017/000000000005.jpg", jpeg())
    return src


def test_captions_are_gathered_by_picture(
    src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["coco-captions", "--src", str(src), "--split", "val", "--out", str(out)]) == 0
    samples = packed(out)
    assert {key: [a["caption"] for a in s.annotations] for key, s in samples.items()} == {
        "8": ["A cat"],
        "9": ["A dog.", "Dog there"],
    }
    told = capsys.readouterr().out
    assert "dropped: empty caption: 1" in told
    assert "dropped: no annotation: 1" in told


def test_a_test_split_has_pictures_alone(src: Path, tmp_path: Path) -> None:
    given = ["--src", str(src), "--split", "test", "--year", "2017", "--out", str(tmp_path / "out")]
    assert main(["coco-captions", *given]) == 0
    (sample,) = packed(tmp_path / "out").values()
    assert sample.id == "5"
    assert list(sample.annotations) == [{"id": "5"}]
