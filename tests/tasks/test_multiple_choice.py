"""Choices under letters, with context; accuracy by the data's own groups."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.toys.task_samples import sample_of
from vlds.schema import SkipSample
from vlds.tasks import MultipleChoice
from vlds.tasks.base import ask


def test_the_input_has_question_context_and_choices() -> None:
    sample = sample_of("multiple_choice")
    examples = [MultipleChoice().example("m", sample, number, None) for number in range(2)]
    assert [example.prompt for example in examples] == [
        "choose: What is he awaiting? context: He has bags. options: (A) a cab (B) a train",
        "choose: Who waits? options: (A) a man (B) a dog (C) none",
    ]
    assert [example.target for example in examples] == ["B", "A"]
    assert MultipleChoice().decoding.choices == ("A", "B", "C", "D", "E")


def test_every_group_that_the_data_name_is_a_table() -> None:
    sample = sample_of("multiple_choice")
    examples = [MultipleChoice().example("m", sample, number, None) for number in range(2)]
    references = {example.id: example.reference for example in examples}
    assert MultipleChoice().score({"m1": "B", "m2": "B"}, references) == {
        "accuracy": 0.5,
        "accuracy/subject/biology": 0.0,
        "accuracy/subject/social science": 1.0,
        "accuracy/grades/1-6": 0.5,
    }
    plain = {"m1": {"answer": "B", "groups": {}}}
    assert MultipleChoice().score({"m1": "B"}, plain) == {"accuracy": 1.0}
    mixed = {
        key: {"answer": "B", "groups": {"year": year}}
        for key, year in (("1", "unknown"), ("2", 10), ("3", 9), ("4", "9"))
    }
    cells = list(MultipleChoice().score(dict.fromkeys(mixed, "B"), mixed))[1:]
    assert cells == [f"accuracy/year/{year}" for year in (9, 10, "unknown")]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"choices": ["x"] * 6}, "choices is \\['x', .*, a list of 1 to 5 expected"),
        ({"choices": "ab"}, "choices is 'ab', a list of 1 to 5"),
        ({"answer_index": 2}, "answer_index is 2, of 2 choices from 0 on"),
        ({"answer_index": True}, "answer_index is True"),
        ({"groups": {"age/sex": "50/f"}}, "groups has the name 'age/sex'; names of tables have no"),
        ({"groups": {"age": [50]}}, "groups.age is \\[50\\], a text or whole number expected"),
    ],
)
def test_what_is_no_choice_is_a_bad_sample(fields: dict[str, Any], told: str) -> None:
    sample = sample_of("multiple_choice")
    (first, *_) = sample.annotations
    good = {**first, "choices": ["x", "y"], "answer_index": 0}
    numbers = {**good, "choices": [1, 2.5]}
    for annotation in (good, numbers):
        asked = ask(MultipleChoice(), "m", replace(sample, annotations=(annotation,)), 0, None)
        assert asked.target == "A"
    assert asked.prompt.endswith("options: (A) 1 (B) 2.5")
    odd = replace(sample, annotations=({**good, **fields},))
    with pytest.raises(SkipSample, match=f"not what MultipleChoice reads: .*{told}"):
        ask(MultipleChoice(), "m", odd, 0, None)
