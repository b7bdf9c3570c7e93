"""VQA accuracy: every expected value is worked out by hand from the official script's rules.

vqa_accuracy_table.jsonl has one row a line: the rule that it is about, a prediction and its form
behind all rules, the ten answers as [answer, how many gave it, its form], how many of the ten
match, and the score, which is 0, 0.3, 0.6, 0.9, 1 for 0, 1, 2, 3, 4 or more of them.
vqa_accuracy_legacy_table.jsonl is the same for the older rules.
"""

from __future__ import annotations

import json
from math import nan
from pathlib import Path
from typing import Any

import pytest

from vlds.tasks.metrics.plain_scores import score_values, split
from vlds.tasks.metrics.vqa_accuracy import (
    CONTRACTIONS,
    Rules,
    compared,
    normalise,
    question_accuracy,
)

NORMALISED = [
    # What the table of answers does not hold already.
    # A punctuation mark without a space next to it becomes a space, ...
    *((f"x{mark}y", "x y") for mark in ';/_@\\`<>{}[]"?!'),
    ("!", ""),
    # ... with a space next to any mark of its kind, all marks of this kind are removed, ...
    ("No, thanks", "no thanks"),
    ("well -known", "well known"),
    ("5 -", "5"),
    ("10 , 20", "10 20"),
    # ... and with a comma between digits anywhere, all marks are removed.
    ("3.5,2", "3.52"),
    ("a/b 1,0", "ab 10"),
    # Other marks stay.
    ("it's 10:30", "it's 10:30"),
    ("$5.00", "$5.00"),
    ("rock & roll", "rock & roll"),
    # Number words come after punctuation, articles after number words.
    ("Twelve", "twelve"),
    ("a+b=c", "b c"),
    # Contractions are looked up word by word, in lower case.
    ("isnt it, dont you", "isn't it don't you"),
    ("hes not an animal", "he's not animal"),
    ("Im here", "im here"),  # the table's key is "Im", which no lower-cased word equals
    ("  spaced \t out ", "spaced out"),
]


@pytest.mark.parametrize(("raw", "expected"), NORMALISED)
def test_normalise(raw: str, expected: str) -> None:
    assert normalise(raw) == expected


def rows(name: str) -> list[dict[str, Any]]:
    text = (Path(__file__).parent / name).read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


TABLES: list[tuple[Rules, dict[str, Any]]] = [
    *(("official", row) for row in rows("vqa_accuracy_table.jsonl")),
    *(("legacy", row) for row in rows("vqa_accuracy_legacy_table.jsonl")),
]


@pytest.mark.parametrize(
    ("rules", "row"), TABLES, ids=[f"{rules}-{row['prediction']!a}" for rules, row in TABLES]
)
def test_rows_worked_out_by_hand(rules: Rules, row: dict[str, Any]) -> None:
    answers = [answer for answer, count, _ in row["answers"] for _ in range(count)]
    forms = [form for _, count, form in row["answers"] for _ in range(count)]
    assert compared(row["prediction"], answers, rules) == (row["form"], forms)
    score = question_accuracy(row["prediction"], answers, rules)
    assert score == pytest.approx(row["score"], abs=1e-12)


def test_no_answers_are_an_error() -> None:
    with pytest.raises(ValueError, match="raw answers"):
        question_accuracy("yes", [])


def test_every_contraction_differs_only_by_apostrophes() -> None:
    assert len(CONTRACTIONS) == 120
    for without, with_apostrophe in CONTRACTIONS.items():
        assert without.replace("'", "") == with_apostrophe.replace("'", "")


# A score's name says whether it is a cell of a table.


def test_a_name_is_split_at_two_slashes_at_most() -> None:
    assert split("accuracy/answer_type/yes/no") == ("accuracy", "answer_type", "yes/no")
    assert split("accuracy") is None
    assert split("bleu/4") is None, "a name of the user's own is a score"


def test_examples_of_other_groups_do_not_count_in_a_cell() -> None:
    values, steps = {"accuracy": [1.0, 0.0, 0.5, 0.25]}, {"steps": [2, 3, 2, None]}
    assert score_values("accuracy", values) == values["accuracy"]
    assert str(score_values("accuracy/steps/2", values, steps.get)) == "[1.0, nan, 0.5, nan]"
    assert str(score_values("accuracy/steps/None", values, steps.get)) == str([nan] * 4)
    assert score_values("consistency", values) is None
