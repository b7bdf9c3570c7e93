"""Samples are shown as they are, in the terminal and on a page."""

from __future__ import annotations

import base64
import io
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_prep.cli import main
from data_prep.packing.writer import SampleRecord, write_dataset
from data_prep.preview import answer_of, text_of
from tests.toys.pictures import jpeg, png
from tests.toys.shards import features, grid

QUESTION = "Is <b>this</b> & that red?"
SHARD = "vqav2-train-00001.tar"


def vqa(number: int) -> SampleRecord:
    answers = ["yes"] * 7 + ["no"] * 3
    annotations = [
        {"id": f"{number}-{n}", "question": f"{QUESTION} {number}-{n}", "answers": answers}
        for n in range(8)
    ]
    picture = jpeg(width=640, height=480) if number % 2 else png()
    extension = "jpg" if number % 2 else "png"
    return SampleRecord(
        id=f"image{number}", members=[(extension, picture)], json={"annotations": annotations}
    )


def written(out: Path, *records: SampleRecord, kind: str = "vqa", name: str = "one") -> Path:
    """In shards of four samples."""
    write_dataset(out, name=name, kind=kind, split="train", records=records, shard_samples=4)
    return out


def ids_in(text: str) -> list[str]:
    return re.findall(r"id (\w+)", text)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return written(tmp_path / "shards", *map(vqa, range(10)), name="vqav2")


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the command prints, without a terminal."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: str) -> str:
        capsys.readouterr()
        assert main(["preview", *arguments]) == 0
        return capsys.readouterr().out

    return run


def test_samples_are_spread_evenly(shards: Path, printed: Any) -> None:
    text = printed(str(shards), "--samples", "5")
    assert ids_in(text) == [f"image{n}" for n in (0, 2, 4, 6, 8)]
    assert "5 of 10 samples" in text
    assert "vqav2-train-00001.tar:2  id image6" in text
    assert len(re.findall("id image", printed(str(shards)))) == 8


def test_one_sample_with_all_its_annotations(shards: Path, printed: Any) -> None:
    text = printed(f"{shards / SHARD}:1")
    assert ids_in(text) == ["image5"]
    assert "640x480, 8 annotations" in text
    assert f"{QUESTION} 5-7" in text
    assert "more" not in text
    assert "and 2 more" in printed(str(shards), "--samples", "1")


def test_samples_and_annotations_by_their_ids(shards: Path, printed: Any) -> None:
    text = printed(str(shards), "--ids", "8-3", "image2", "8-7")
    assert ids_in(text) == ["image2", "image8"]
    assert "2 of 10 samples" in text
    assert re.findall(r"red\? (8-\d)", text) == ["8-3", "8-7"]
    assert len(re.findall(r"red\? 2-\d", text)) == 8
    written(shards.parent / "other", vqa(10))
    text = printed(str(shards.parent), "--ids", "image10", "1-1")
    assert ids_in(text) == ["image10", "image1"]


@pytest.mark.parametrize(
    ("annotation", "text", "answer"),
    [
        ({"question": "q", "answers": ["red"]}, "q", "red"),
        ({"question": "q", "label": {"a": 0.3, "b": 1.0}}, "q", "b (1), a (0.3)"),
        ({"question": "q", "answer": "yes", "full_answer": "Yes, it is."}, "q",
         "yes (Yes, it is.)"),
        ({"question": "q", "choices": ["a", "b", "c"], "answer_index": 1}, "q", "b (not: a / c)"),
        ({"question": "q", "choices": ["a", "b"]}, "q", "one of: a / b"),
        ({"sentence": "s", "label": False}, "s", "false"),
        ({"hypothesis": "h", "label": "neutral"}, "h", "neutral"),
        ({"caption": "c"}, "c", ""),
        ({"span": [1, 2]}, '{"span": [1, 2]}', ""),
        ({}, "(nothing is said: a test split)", ""),
    ],
)  # fmt: skip
def test_every_kind_has_words(annotation: dict[str, Any], text: str, answer: str) -> None:
    given = {"id": "1", **annotation}
    assert (text_of(given), answer_of(given)) == (text, answer)


def test_page(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "sheet.html"
    assert main(["preview", str(shards), "--out", str(out), "--samples", "4"]) == 0
    page = out.read_text("utf-8")
    assert page.count('<figure class="sample">') == 4
    assert "<b>this" not in page
    assert f"{QUESTION} 0-0" in unescape(page)
    assert "http" not in page.replace('http-equiv="', "")
    sizes = []
    for kind, data in re.findall(r'src="data:image/(\w+);base64,([^"]+)"', page):
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            assert image.format == kind.upper()
            sizes.append(image.size)
    assert sizes == [(40, 24), (40, 24), (320, 240), (320, 240)]
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page


def test_damaged_pictures_and_features_have_a_place(tmp_path: Path, printed: Any) -> None:
    pair = SampleRecord(
        id="pair",
        members=[("left.jpg", jpeg()), ("right.jpg", jpeg(width=300, height=300)[:-900])],
        json={"annotations": [{"id": "1", "sentence": "wide " + 90 * "x", "label": True}]},
    )
    damaged = written(tmp_path / "a", pair, kind="nlvr2")
    clip = written(tmp_path / "b", features(1, grid()), kind="video_qa")
    assert "40x24, 300x300, 1 annotation\n" in printed(str(damaged))
    assert "features 4x3, 1 annotation\n" in printed(str(clip))
    for folder in (damaged, clip):
        printed(str(folder), "--out", str(tmp_path / f"{folder.name}.html"))
    assert (tmp_path / "a.html").read_text().count("cannot be decoded") == 1
    assert "features 4x3</div>" in (tmp_path / "b.html").read_text()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ([":10"], "has samples 0 to 9, but no 10"),
        (["/none-train-00000.tar"], "no such shard"),
        (["", "--ids", "image1", "8-9", "x"], "an annotation in {} has the id 8-9 or x; `preview`"),
        ([":1", "--ids", "image1"], "--ids image1: {}:1 is one sample; give one of the two"),
    ],
)
def test_wrong_use_is_refused(shards: Path, refused: Any, more: list[str], told: str) -> None:
    refused(main(["preview", f"{shards}{more[0]}", *more[1:]]), told.format(shards))
