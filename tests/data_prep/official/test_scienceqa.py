"""ScienceQA: one sample a question, with its groups; questions without a picture if asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.cli import main
from tests.toys.official_sets import write_scienceqa
from tests.toys.shards import packed


@pytest.fixture
def src(tmp_path: Path) -> Path:
    return write_scienceqa(tmp_path / "src")


def test_a_question_has_choices_hint_and_groups(src: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["scienceqa", "--src", str(src), "--split", "test", "--out", str(out)]) == 0
    (annotation,) = packed(out)["5"].annotations
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


def test_questions_without_a_picture(
    src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["scienceqa", "--src", str(src), "--split", "test"]
    assert main([*given, "--out", str(tmp_path / "seen")]) == 0
    assert "dropped: no picture: 12 " in capsys.readouterr().out
    assert len(packed(tmp_path / "seen")) == 12
    assert main([*given, "--text-rows", "--out", str(tmp_path / "all")]) == 0
    samples = packed(tmp_path / "all")
    assert len(samples) == 24
    assert samples["2"].images == ()
    groups = samples["2"].annotations[0]["groups"]
    assert (groups["context"], "hint" in samples["2"].annotations[0]) == ("none", False)
