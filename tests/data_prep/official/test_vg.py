"""Visual Genome: two folders of pictures, fields of two versions, COCO's pictures among them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.cli import main
from tests.toys.files import write
from tests.toys.pictures import jpeg


@pytest.fixture
def src(tmp_path: Path) -> Path:
    src = tmp_path / "vg"
    first = {"qa_id": 11, "image_id": 1, "question": "What is it? ", "answer": "A dog."}
    empty = {"qa_id": 12, "image_id": 1, "question": "Why?", "answer": " . "}
    old = {"qa_id": 21, "question": "Where?", "answer": "Outside", "q_objects": [], "a_objects": []}
    pictures = [{"id": 1, "qas": [first, empty]}, {"image_id": 2, "qas": [old]}]
    write(src / "question_answers.json", [*pictures, {"id": 3, "qas": [old]}])
    box = {"x": 1, "y": 2, "width": 3, "height": 4}
    regions = [{"region_id": 5, "image_id": 1, "phrase": "a brown  dog", **box}]
    write(src / "region_descriptions.json", [{"id": 1, "regions": regions}])
    of_coco = [{"image_id": 1, "coco_id": None}, {"image_id": 2, "coco_id": 70}]
    write(src / "image_data.json", [*of_coco, {"id": 3, "coco_id": 80}])
    split = [{"cocoid": 70, "split": "restval"}, {"cocoid": 80, "split": "test"}]
    write(src / "dataset_coco.json", {"images": split})
    for part, number in (("VG_100K", 1), ("VG_100K_2", 2), ("VG_100K_2", 3)):
        write(src / part / f"{number}.jpg", jpeg())
    return src


def test_questions_without_those_about_pictures_of_coco_test(
    src: Path, tmp_path: Path, pack_split: Any
) -> None:
    without = ("--without-coco", src / "dataset_coco.json")
    samples = pack_split("vg --what questions", src, *without)
    assert sorted(samples) == ["1", "2"]
    (annotation,) = samples["1"].annotations
    assert annotation == {
        "id": "11",
        "question": "What is it?",
        "answers": ["a dog"],
        "label": {"a dog": 1.0},
    }
    info = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert info["name"] == "vg_questions"
    assert {entry["id"]: entry["reason"] for entry in info["dropped"]} == {
        "12": "no answer",
        "21": "in COCO's val or test split",
        "3": "picture in COCO's val or test split",
    }


def test_ids_are_unique_over_all_pictures(src: Path, tmp_path: Path, refused: Any) -> None:
    given = ["--src", str(src), "--what", "questions", "--out", str(tmp_path / "out")]
    refused(main(["vg", *given]), "annotation id 21 occurs more than once")


def test_regions_keep_their_box(src: Path, pack_split: Any) -> None:
    (sample,) = pack_split("vg --what regions", src).values()
    assert sample.kind == "pair_text"
    assert list(sample.annotations) == [
        {"id": "5", "text": "a brown dog", "source": {"x": 1, "y": 2, "width": 3, "height": 4}}
    ]
