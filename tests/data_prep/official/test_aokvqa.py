"""A-OKVQA: choices, direct answers and rationales; a test split without answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_prep.official.aokvqa import parse_aokvqa
from tests.toys.files import write
from tests.toys.official_sets import AOKVQA_ROWS, write_aokvqa
from tests.toys.shards import find_annotation


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
