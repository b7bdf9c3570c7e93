"""ScienceQA: one sample a question, with its groups; questions without a picture if asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.toys.official_sets import write_scienceqa


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
