"""Questions with answers: the publishers' files and their traps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.official.aokvqa import parse_aokvqa
from data_prep.official.easy_vqa import is_negated, load_easy_vqa
from data_prep.official.vqav2 import parse_vqav2
from tests.toys.files import write
from tests.toys.official import VQA_ANSWERS, VQA_PICTURES, write_vqav2
from tests.toys.official_sets import (
    AOKVQA_ROWS,
    TEXTVQA_ANSWERS,
    write_aokvqa,
    write_okvqa,
    write_scienceqa,
    write_textvqa,
)
from tests.toys.pictures import jpeg
from tests.toys.shards import find_annotation

# VQA v2: official files with their traps -> shards, and back as a run reads them.


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


# OK-VQA: VQA's form without its prefix, and types of questions under their names.


def test_questions_with_ten_answers_and_their_type(tmp_path: Path, pack_split: Any) -> None:
    samples = pack_split("okvqa --split val", write_okvqa(tmp_path))
    assert {sample.kind for sample in samples.values()} == {"vqa"}
    assert find_annotation(samples, "516065") == {
        "id": "516065",
        "question": "What is 516065?",
        "answers": ["pony tail"] * 6 + ["braid"] * 2 + ["Braid"] * 2,
        "label": {"pony tail": 1.0, "braid": 1.0},
        "answer_type": "other",
        "question_type": "Sports and Recreation",
        "source": {"confidence": 3},
    }


# A-OKVQA: choices, direct answers and rationales; a test split without answers.


def test_a_question_has_choices_and_direct_answers(tmp_path: Path, pack_split: Any) -> None:
    samples = pack_split("aokvqa --split val", write_aokvqa(tmp_path))
    assert sorted(samples) == ["299207", "299208", "299209"]
    assert samples["299207"].kind == "multiple_choice"
    assert find_annotation(samples, "22MexNkBPpdZGX6sxbxVB1") == {
        "id": "22MexNkBPpdZGX6sxbxVB1",
        "question": "What is the man by the bags awaiting?",
        "choices": ["skateboarder", "train", "delivery", "cab"],
        "answer_index": 1,
        "answers": ["train"] * 9 + ["Train"],
        "label": {"train": 1.0},
        "difficult": False,
        "source": {"rationales": AOKVQA_ROWS[1]["rationales"]},
    }


def test_the_test_split_has_no_answers(tmp_path: Path) -> None:
    answers = ("correct_choice_idx", "direct_answers", "rationales")
    row = {key: value for key, value in AOKVQA_ROWS[0].items() if key not in answers}
    write(tmp_path / "aokvqa_v1p0_test.json", [row])
    (sample,) = parse_aokvqa(tmp_path, "test").samples
    assert sample.images == (tmp_path / "test2017/000000299207.jpg",)
    (annotation,) = sample.annotations
    assert not {"answer_index", "answers", "label"} & annotation.keys()
    assert annotation["difficult"] is False


# TextVQA: ten answers, and the words of each picture from another file.


def test_samples_have_the_words_of_their_picture(tmp_path: Path, pack_split: Any) -> None:
    samples = pack_split("textvqa --split val", write_textvqa(tmp_path))
    words = [samples[f"003a8ae2ef43b90{n}"].extra["ocr_tokens"] for n in range(3)]
    assert words == [["NOKIA", "12:30"], [], ["one way"]]
    annotation = find_annotation(samples, "34603")
    assert annotation["answers"] == TEXTVQA_ANSWERS[1]
    assert annotation["label"]["one thousand"] == 1.0
    assert annotation["source"]["image_classes"] == ["Mobile phone"]


# easy-VQA as its package ships it; left out where the package is not installed.


def test_subsets_share_out_all_questions() -> None:
    pytest.importorskip("easy_vqa", reason="pip install easy-vqa")
    datasets = {(subset, dataset.split): dataset for subset, dataset in load_easy_vqa()}
    for split, pictures, questions in (("train", 4000, 38575), ("test", 1000, 9673)):
        ids = {
            subset: [a["id"] for s in datasets[subset, split].samples for a in s.annotations]
            for subset in ("all", "plain", "negated")
        }
        assert len(datasets["all", split].samples) == pictures
        assert len(ids["all"]) == questions
        assert sorted(ids["plain"] + ids["negated"]) == sorted(ids["all"])
    negated = [a for s in datasets["negated", "test"].samples for a in s.annotations]
    assert {answer for a in negated for answer in a["answers"]} == {"yes", "no"}


@pytest.mark.parametrize(
    ("question", "negated"),
    [
        ("is there not a red shape?", True),
        ("is no blue shape present?", True),
        ("does the image not contain a circle?", True),
        ("is there a red shape?", False),
        ("what color is the nothing?", False),
    ],
)
def test_words_of_negation(question: str, negated: bool) -> None:
    assert is_negated(question) == negated


# ScienceQA: one sample a question, with its groups; questions without a picture if asked.


def test_a_question_has_choices_hint_and_groups(tmp_path: Path, pack_split: Any) -> None:
    (annotation,) = pack_split("scienceqa --split test", write_scienceqa(tmp_path))["5"].annotations
    assert annotation == {
        "id": "5",
        "question": "Which of these 5? Select one.",
        "choices": ["West Virginia", "Louisiana", "Arizona"],
        "answer_index": 1,
        "hint": "Figure: sturgeon.",
        "groups": {
            "subject": "language science",
            "hint": "with",
            "picture": "with",
            "context": "some",
            "grades": "1-6",
            "topic": "verbs",
        },
        "source": {
            "task": "closed choice",
            "category": "Geography",
            "skill": "Read a map",
            "lecture": "Maps have four\ncardinal directions.",
            "solution": "Look at the compass rose.",
        },
    }


def test_questions_without_a_picture(tmp_path: Path, pack_split: Any, output: Any) -> None:
    src = write_scienceqa(tmp_path)
    assert len(pack_split("scienceqa --split test", src)) == 12
    assert "dropped: no picture: 12 " in output()
    samples = pack_split("scienceqa --split test --text-rows", src)
    assert len(samples) == 24
    assert samples["2"].images == ()
    groups = samples["2"].annotations[0]["groups"]
    assert (groups["context"], "hint" in samples["2"].annotations[0]) == ("none", False)
