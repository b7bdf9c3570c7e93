"""OK-VQA: VQA's form without its prefix, and types of questions under their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.toys.official_sets import write_okvqa
from tests.toys.shards import find_annotation


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
