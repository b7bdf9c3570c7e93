"""easy-VQA as its package ships it; left out where the package is not installed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from data_prep.cli import main
from data_prep.official.easy_vqa import is_negated, load_easy_vqa


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


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Any) -> None:
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    refused(main(["easy-vqa", "--out", str(tmp_path)]), "pip install easy-vqa")
