"""VQA v2: official files with their traps -> shards, and back as a run reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.official.vqav2 import parse_vqav2
from tests.toys.files import write
from tests.toys.official import VQA_ANSWERS, VQA_PICTURES, write_vqav2
from tests.toys.pictures import jpeg
from tests.toys.shards import find_annotation


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """A val split in the layout of visualqa.org."""
    return write_vqav2(tmp_path / "vqa")


def test_annotations_as_a_run_reads_them(official: Path, pack_split: Any) -> None:
    samples = pack_split("vqav2 --split val", official)
    assert sorted(samples) == ["1", "2", "3", "9"]
    assert find_annotation(samples, "1000") == {
        "id": "1000",
        "question": "what is 1000?",
        "answers": ["yes"] * 10,
        "label": {"yes": 1.0},
        "answer_type": "other",
        "question_type": "what is",
        "source": {"multiple_choice_answer": "yes"},
    }
    # The raw answers are kept for the official scorer; the label joins those that differ in case
    # or white space.
    assert find_annotation(samples, "1001")["answers"] == VQA_ANSWERS[1001]
    assert find_annotation(samples, "1001")["label"] == {
        "Black-and-white": 0.9, "black\nand white": 0.6, "grey": 0.6, "b": 0.6, "gray": 0.3,
    }  # fmt: skip
    assert find_annotation(samples, "2000")["label"] == {"2": 1.0, "two": 0.3}
    assert find_annotation(samples, "9000")["label"]["netting"] == 0.9
    assert len(samples["1"].annotations) == 2
    assert samples["9"].images == (VQA_PICTURES[9],)
    assert samples["2"].images == (VQA_PICTURES[2],)
    assert samples["3"].extra["size"] == [[24, 40]]  # it stands upright


def test_nothing_is_dropped_in_silence(
    official: Path, tmp_path: Path, pack_split: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    pack_split("vqav2 --split val", official)
    printed = capsys.readouterr().out
    assert "5 in = 4 written + 1 dropped" in printed
    assert "6 in = 5 written + 1 dropped" in printed
    info = json.loads((tmp_path / "out/dataset.json").read_text())
    assert info["dropped"] == [{"id": "7", "reason": "picture: truncated or damaged"}]
    assert [entry["file"] for entry in info["source"]] == [
        "v2_OpenEnded_mscoco_val2014_questions.json",
        "v2_mscoco_val2014_annotations.json",
    ]
    assert info["shards"][0]["name"] == "vqav2-val-00000.tar"


def test_files_of_two_splits_do_not_fit(official: Path) -> None:
    path = official / "v2_mscoco_val2014_annotations.json"
    content = json.loads(path.read_text())
    content["annotations"].pop()
    write(path, content)
    with pytest.raises(ValueError, match="differ in 1 questions, the first is question_id 1000"):
        parse_vqav2(official, "val")


def test_test_split_has_no_labels(tmp_path: Path) -> None:
    name = "COCO_test2015_000000000004.jpg"
    write(tmp_path / "test2015" / name, jpeg())
    write(
        tmp_path / "v2_OpenEnded_mscoco_test-dev2015_questions.json",
        {"questions": [{"image_id": 4, "question_id": 4000, "question": "why?"}]},
    )
    dataset = parse_vqav2(tmp_path, "test-dev")
    assert dataset.samples[0].annotations == [{"id": "4000", "question": "why?"}]
    assert dataset.samples[0].images[0].is_file()


def test_karpathys_split(official: Path, pack_split: Any) -> None:
    """Train has the questions about his train and restval pictures, from both official subsets."""
    for part, name in (("questions", "v2_OpenEnded_mscoco"), ("annotations", "v2_mscoco")):
        write(official / f"{name}_train2014_{part}.json", {part: []})
    splits = {1: "restval", 2: "test", 3: "train", 7: "val", 9: "test"}
    images = [{"cocoid": number, "split": split} for number, split in splits.items()]
    write(official / "dataset_coco.json", {"images": images})
    for split, pictures in (("karpathy-train", ["1", "3"]), ("karpathy-test", ["2", "9"])):
        assert sorted(pack_split(f"vqav2 --split {split}", official, out=split)) == pictures


LXMERT = [
    {"img_id": "COCO_val2014_000000000001", "sent": "What? ", "label": {"net": 1, "mesh": 0.3},
     "question_id": 1000, "answer_type": "other", "question_type": "what"},
    {"img_id": "COCO_val2014_000000000001", "sent": "Why?", "label": {}, "question_id": 77},
]  # fmt: skip


def test_questions_of_lxmert(official: Path, tmp_path: Path, pack_split: Any) -> None:
    given = ("--questions", write(tmp_path / "minival.json", LXMERT))
    (sample,) = pack_split("vqav2 --split val", official, *given).values()
    assert sample.id == "COCO_val2014_000000000001"
    assert list(sample.annotations) == [
        {"id": "1000", "question": "What?", "label": {"net": 1.0, "mesh": 0.3},
         "answer_type": "other", "question_type": "what"},
        {"id": "77", "question": "Why?", "label": {}},
    ]  # fmt: skip
    labels = official / "v2_mscoco_val2014_annotations.json"
    more = (*given, "--annotations", labels)
    (sample,) = pack_split("vqav2 --split val", official, *more).values()
    assert sample.annotations[0]["answers"] == ["yes"] * 10
    assert "answers" not in sample.annotations[1]
