"""Visual entailment compares three words."""

from __future__ import annotations

import pytest

from tests.toys.task_samples import sample_of
from vlds.tasks import Entailment


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
