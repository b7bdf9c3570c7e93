"""VQA: drawn answers, weights, scores, and questions without ten answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from data_prep.packing.pack import soft_label
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
    assert VQA().example("vqa", sample, 0, np.random.default_rng(1)) == drawn[0]


@pytest.mark.parametrize("label", [{}, {"cat": 0.0}])
def test_no_soft_score_means_an_empty_answer_of_weight_zero(label: dict[str, float]) -> None:
    example = VQA().example("vqa", sample_of(label=label), 0, np.random.default_rng(0))
    assert (example.target, example.weight) == ("", 0.0)


def test_best_answer_in_evaluation() -> None:
    by_score = sample_of(label={"dog": 0.3, "cat": 0.9}, answers=["dog"] * 10)
    by_count = sample_of(label={}, answers=["dog", "cat", "cat"])
    targets = [VQA().example("vqa", sample, 0, None).target for sample in (by_score, by_count)]
    assert targets == ["cat", "cat"]


def reference(answers: list[str], **fields: Any) -> dict[str, Any]:
    """The example that evaluation makes of a question with these answers."""
    label = fields.pop("label", soft_label(answers))
    found = sample_of(answers=answers, label=label, **fields)
    return dict(VQA().example("vqa", found, 0, None).reference)


def test_official_accuracy_and_its_tables() -> None:
    references = {
        "1": reference(["yes"] * 10, answer_type="yes/no", question_type="is it"),
        "2": reference(["dog"] * 7 + ["cat"] * 3, answer_type="other", question_type="what is"),
    }
    assert VQA().score({"1": "yes", "2": "Cat"}, references) == pytest.approx(
        {
            "vqa_accuracy": 0.95,
            "exact_match": 0.5,
            "vqa_accuracy/answer_type/other": 0.9,
            "vqa_accuracy/answer_type/yes/no": 1.0,
            "vqa_accuracy/question_type/is it": 1.0,
            "vqa_accuracy/question_type/what is": 0.9,
        }
    )


@pytest.mark.parametrize(
    ("prediction", "answer", "accuracy"),
    [("yes", "yes", 1.0), ("Yes", "yes", 0.0), ("Paris", "Paris", 1.0), ("paris", "Paris", 0.0)],
)
def test_where_all_ten_agree_the_answer_is_compared_as_it_stands(
    prediction: str, answer: str, accuracy: float
) -> None:
    references = {"1": reference([answer] * 10)}
    scores = VQA().score({"1": prediction}, references)
    assert scores == {"vqa_accuracy": accuracy, "exact_match": 1.0}
    assert VQA().correct(prediction, references["1"]) is (accuracy == 1.0)


def test_what_a_model_wrote_is_an_answer_in_lower_case() -> None:
    """Then a model's own score equals that of its leaderboard file; a list keeps its case."""
    assert VQA().answer_from("Yes") == "yes"
    listed = replace(VQA().decoding, answers=("Paris",))
    assert VQA(decoding=listed).answer_from("Paris") == "Paris"


def test_the_older_rules_have_a_name_of_their_own() -> None:
    references = {"1": reference(["two"] * 9 + ["2"]), "2": reference(["a dog"] * 10)}
    predictions = {"1": "two", "2": "a dog"}
    assert VQA().score(predictions, references)["vqa_accuracy"] == 1.0
    legacy = VQA(accuracy="legacy")
    # "2" equals one of ten, because the others stay "two"; "dog" does not equal "a dog".
    scores = legacy.score(predictions, references)
    assert list(scores) == ["vqa_accuracy_legacy", "exact_match"]
    assert scores["vqa_accuracy_legacy"] == pytest.approx(0.15)
    assert legacy.correct("two", references["1"]) is False
    assert VQA().correct("two", references["1"]) is True


@pytest.mark.parametrize("count", [1, 2, 9, 11])
def test_any_number_of_answers_trains_and_is_scored(count: int) -> None:
    answers = (["sofa", "Couch", "seat"] * 4)[:count]
    sample = sample_of(answers=answers, label=soft_label(answers))
    rng = np.random.default_rng(0)
    drawn = {VQA().example("vqa", sample, 0, rng).target for _ in range(100)}
    assert drawn == {answer.lower() for answer in answers}
    evaluated = VQA().example("vqa", sample, 0, None)
    references = {"q": evaluated.reference}
    scores = VQA().score({"q": str(evaluated.target).upper()}, references)
    if count == 1:
        assert scores == {"exact_match": 1.0}
    else:
        assert scores == {"soft_score": 1.0, "exact_match": 1.0}
        assert VQA().score({"q": "couch"}, references) == {"soft_score": 1.0, "exact_match": 0.0}
    assert VQA().correct("table", evaluated.reference) is False


def test_soft_scores_alone_are_scored_as_lxmert_scores_them() -> None:
    def reference_of(**fields: Any) -> Any:
        return VQA().example("vqa", sample_of(**fields), 0, None).reference

    references = {"q": reference_of(label={"cat": 0.9, "dog": 0.3})}
    assert VQA().score({"q": "dog"}, references) == {"soft_score": 0.3, "exact_match": 0.0}
    for label in ({}, {"cow": 0.0}):  # no answer is right, and the question counts
        references["none"] = reference_of(label=label)
        scores = VQA().score({"q": "cat", "none": ""}, references)
        assert scores == {"soft_score": 0.45, "exact_match": 0.5}
        assert VQA().correct("", references["none"]) is False
    assert reference_of(label={}, answers=[]) is None
    # Raw answers without soft scores all count.
    assert VQA().score({"q": "no"}, {"q": reference_of(answers=["yes", "no"])})["soft_score"] == 1.0


def test_correct_asks_for_two_of_ten_people() -> None:
    animal = reference(["dog"] * 7 + ["cat"] * 2 + ["cow"])
    right = [VQA().correct(text, animal) for text in ("dog", "Cat", "cow", "pig")]
    assert right == [True, True, False, False]
