"""GQA's scores against independently written formulas, and the parts of them."""

from __future__ import annotations

import random

import pytest

from vlds.tasks.metrics.gqa_scores import (
    Question,
    gqa_scores,
    reasoning_steps,
    values_by_score,
)
from vlds.tasks.metrics.plain_scores import mean


def test_a_larger_case_against_the_formulas() -> None:
    rng = random.Random(3)
    ids = [f"{number:08d}" for number in range(300)]
    questions = {
        key: Question(
            rng.choice("abcd"), rng.random() < 0.5, group=rng.choice([None, "g", "h", "i"]),
            entailed=rng.sample(ids, rng.randrange(4)),
        )
        for key in ids
    }  # fmt: skip
    predictions = {
        key: question.answer if rng.random() < 0.6 else rng.choice("abcde")
        for key, question in questions.items()
    }
    right = {key: predictions[key] == questions[key].answer for key in ids}
    balanced = [key for key in ids if questions[key].balanced]
    entailed_scores = []
    for key in balanced:
        others = [other for other in questions[key].entailed if other != key]
        if right[key] and others:
            entailed_scores.append(sum(right[other] for other in others) / len(others))
    chi = size = 0.0
    for group in "ghi":
        members = [key for key in balanced if questions[key].group == group]
        for answer in {questions[key].answer for key in members}:
            true = sum(questions[key].answer == answer for key in members)
            said = sum(predictions[key] == answer for key in members)
            chi += len(members) * (said - true) ** 2 / true
        size += len(members)
    assert gqa_scores(predictions, questions) == pytest.approx(
        {
            "accuracy": sum(right[key] for key in balanced) / len(balanced),
            "consistency": sum(entailed_scores) / len(entailed_scores),
            "distribution": chi / size / 100,
        },
        rel=1e-12,
    )


def test_steps_leave_out_those_that_only_read_the_answer_off() -> None:
    program = [
        {"operation": "select", "argument": "car (12)"},
        {"operation": "filter color", "argument": "red (12)"},
        {"operation": "relate", "argument": "man,to the left of,s (7)"},
        {"operation": "query", "argument": "name"},
    ]
    assert reasoning_steps(program) == 3
    assert reasoning_steps([*program[:1], {"operation": "exist", "argument": "?"}]) == 1
    assert reasoning_steps([{"operation": "choose name", "argument": "cat|dog"}]) == 0


def test_what_two_things_have_in_common_stands_in_no_file() -> None:
    kinds = {"1": "compareCommon", "2": None, "3": "verify"}
    questions = {key: Question("", detailed=kind) for key, kind in kinds.items()}
    listed = {"1": ["red"], "2": ["red"], "3": ["yes"]}
    choices = {key: {"valid": words, "plausible": words} for key, words in listed.items()}
    # "Common" in the detailed type: color, material and shape alone are valid, whatever the file.
    for words in (["material", "red", "no"], ["red", "red", "yes"]):
        predictions = dict(zip(kinds, words, strict=True))
        values = values_by_score(predictions, questions, choices)
        assert mean(values["validity"]) == mean(values["plausibility"]) == pytest.approx(2 / 3)
