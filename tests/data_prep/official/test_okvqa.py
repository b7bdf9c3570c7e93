"""OK-VQA: VQA's form without its prefix, and types of questions under their names."""

from __future__ import annotations

from pathlib import Path

from data_prep.cli import main
from tests.toys.official_sets import write_okvqa
from tests.toys.shards import find_annotation, packed


def test_questions_with_ten_answers_and_their_type(tmp_path: Path) -> None:
    src, out = write_okvqa(tmp_path / "src"), tmp_path / "out"
    assert main(["okvqa", "--src", str(src), "--split", "val", "--out", str(out)]) == 0
    samples = packed(out)
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
