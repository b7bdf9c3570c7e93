"""NLVR2 compares two words, and counts sentences that are right on all their pairs."""

from __future__ import annotations

import pytest

from tests.toys.task_samples import sample_of
from vlds.tasks import NLVR2, Entailment

LABELS = {
    "dev-1-0-0": ("true", "Both are red."),
    "dev-1-1-0": ("false", "Both are red."),
    "dev-1-0-1": ("true", "One is a dog."),
    "dev-2-0-0": ("true", "Both are red."),
}
REFERENCES = {key: {"answer": word, "sentence": text} for key, (word, text) in LABELS.items()}


def test_accuracy_and_consistency() -> None:
    predictions = {key: word for key, (word, _) in LABELS.items()}
    assert NLVR2().decoding.choices == ("true", "false")
    predictions["dev-1-1-0"] = "true"
    # By id: dev-1--0 is wrong on one of its pairs, dev-1--1 and dev-2--0 are right. By text:
    # "Both are red." is one sentence, which is wrong on one pair.
    assert NLVR2().score(predictions, REFERENCES) == pytest.approx(
        {"accuracy": 3 / 4, "consistency": 2 / 3, "consistency_by_text": 1 / 2}
    )


@pytest.mark.parametrize(
    ("told", "is_right"),
    [("True", True), ("TRUE ", True), ("true\n", True), (" true", False), ("true.", False)],
)
def test_case_and_blanks_at_the_end_do_not_count(told: str, is_right: bool) -> None:
    """So does the official script: it strips the line, and compares in lower case."""
    task, reference = NLVR2(), REFERENCES["dev-1-0-0"]
    assert task.score({"1": told}, {"1": reference})["accuracy"] == is_right
    assert task.correct(told, reference) == is_right


# Visual entailment compares three words.


def test_the_labels_are_the_words_that_are_compared() -> None:
    task = Entailment()
    assert task.decoding.choices == ("entailment", "neutral", "contradiction")
    sample = sample_of("entailment")
    examples = [task.example("ve", sample, number, None) for number in range(2)]
    assert [(example.prompt, example.target) for example in examples] == [
        ("entailment: Animals.", "entailment"),
        ("entailment: They sleep.", "contradiction"),
    ]


def test_accuracy_and_its_table() -> None:
    references = {"1": "entailment", "2": "entailment", "3": "neutral", "4": None}
    predictions = {"1": "entailment", "2": "neutral", "3": "neutral", "4": "neutral"}
    assert Entailment().score(predictions, references) == pytest.approx(
        {
            "accuracy": 2 / 3,
            "accuracy/label/entailment": 1 / 2,
            "accuracy/label/neutral": 1.0,
        }
    )
