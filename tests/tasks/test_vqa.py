"""VQA's answer draw, weights, scores and what happens without ten answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vlds.schema import Sample
from vlds.tasks import VQA


def sample_of(**annotation: Any) -> Sample:
    given = {"id": "q", "question": "What is it?", **annotation}
    return Sample("0", "toy", "image", "vqa", (b"",), (), (given,))


def test_answers_are_drawn_by_their_soft_score_and_weighted_by_it() -> None:
    sample = sample_of(label={"cat": 0.9, "dog": 0.3, "cow": 0.0})
    rng = np.random.default_rng(1)
    drawn = [VQA().example("vqa", sample, 0, rng) for _ in range(2000)]
    assert {(example.target, example.weight) for example in drawn} == {("cat", 0.9), ("dog", 0.3)}
    share = sum(example.target == "cat" for example in drawn) / len(drawn)
    assert share == pytest.approx(0.75, abs=0.03)


def test_the_draw_depends_on_the_generator_alone() -> None:
    sample = sample_of(label={"cat": 0.6, "dog": 0.6})
    texts = [
        [VQA().example("vqa", sample, 0, rng).target for _ in range(8)]
        for rng in (np.random.default_rng(3), np.random.default_rng(3))
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("label", [{}, {"cat": 0.0}])
def test_no_soft_score_means_an_empty_answer_of_weight_zero(label: dict[str, float]) -> None:
    example = VQA().example("vqa", sample_of(label=label), 0, np.random.default_rng(0))
    assert (example.target, example.weight) == ("", 0.0)


def test_best_answer_in_evaluation() -> None:
    by_score = sample_of(label={"dog": 0.3, "cat": 0.9}, answers=["dog"] * 10)
    by_count = sample_of(label={}, answers=["dog", "cat", "cat"])
    targets = [VQA().example("vqa", sample, 0, None).target for sample in (by_score, by_count)]
    assert targets == ["cat", "cat"]


def test_official_accuracy_and_parts() -> None:
    references = {
        "1": {"answer": "yes", "answers": ["yes"] * 10,
              "answer_type": "yes/no", "question_type": "is the"},
        "2": {"answer": "cat", "answers": ["cat"] * 3 + ["dog"] * 7,
              "answer_type": "other", "question_type": "what is"},
    }  # fmt: skip
    scores = VQA().score({"1": "Yes", "2": "cat"}, references)
    assert next(iter(scores)) == "vqa_accuracy"
    assert scores["vqa_accuracy"] == pytest.approx(0.95)
    assert scores["vqa_accuracy/answer_type/yes/no"] == 1.0
    assert scores["vqa_accuracy/question_type/what is"] == pytest.approx(0.9)
    assert scores["exact_match"] == 1.0


def test_your_own_data_with_one_answer_is_scored_by_exact_match_alone() -> None:
    reference = {"answer": "left lung", "answers": ["left lung"],
                 "answer_type": "open", "question_type": None}  # fmt: skip
    scores = VQA().score({"1": "Left  Lung", "2": "no"}, {"1": reference, "2": reference})
    assert scores == {"exact_match": 0.5, "exact_match/answer_type/open": 0.5}
    assert VQA().correct("LEFT lung", reference) is True


def test_correct_asks_for_two_of_ten_people() -> None:
    reference = {"answer": "dog", "answers": ["dog"] * 7 + ["cat"] * 2 + ["cow"]}
    right = [VQA().correct(text, reference) for text in ("dog", "Cat", "cow", "pig")]
    assert right == [True, True, False, False]
