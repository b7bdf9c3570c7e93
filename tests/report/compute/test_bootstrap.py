"""Intervals against the definition: draw pictures, score their examples with the task itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from vlds.report.numbers import Interval
from vlds.report.scores import (
    NoMean,
    Units,
    example_values,
    interval_of_difference,
    interval_of_mean,
    numbered,
)
from vlds.tasks import GQA, NLVR2, VQA, Caption
from vlds.tasks.base import Task
from vlds.tasks.metrics import coco_package

needs_java = pytest.mark.skipif(
    coco_package.missing() is not None, reason=str(coco_package.missing())
)
RESAMPLES = 60
NUM = 40
WORDS = ("red", "blue", "two", "no")
ALONE = np.arange(NUM)
"""One example a picture."""
UNEVEN = numbered(str(number * number // 90) for number in range(NUM))
"""One to ten examples of each of 17 pictures."""


def examples(make: Any) -> tuple[dict[str, str], dict[str, Any]]:
    """Predictions, and references made of a random generator and a number."""
    rng = np.random.default_rng(5)
    ids = [f"e{number:02d}" for number in range(NUM)]
    references = {key: make(rng, number) for number, key in enumerate(ids)}
    return {key: str(rng.choice(WORDS)) for key in ids}, references


def vqa(rng: np.random.Generator, number: int) -> Any:
    if number % 9 == 4:
        return None
    answers = [str(word) for word in rng.choice(WORDS, 10)]
    types = {"answer_type": "other", "question_type": "what"}
    return {"answer": answers[0], "answers": answers, "label": {answers[0]: 1.0}, **types}


def few_answers(rng: np.random.Generator, number: int) -> Any:
    """Of some questions ten; alone, those would have another score."""
    label = {"red": 0.9, "two": 0.3} if number % 3 else {"blue": 1.0}
    return vqa(rng, 0) | {"answers": ["red"] * (10 if number % 2 else 3), "label": label}


def gqa(rng: np.random.Generator, number: int) -> Any:
    return {"answer": str(rng.choice(WORDS)), "balanced": number % 3 > 0}


def nlvr(rng: np.random.Generator, number: int) -> Any:
    return {"answer": str(rng.choice(WORDS)), "sentence": f"sentence {number % 7}"}


def captions(rng: np.random.Generator, number: int) -> Any:
    return [" ".join(rng.choice(WORDS, 3)), " ".join(rng.choice(WORDS, 5))]


def draws(groups: Units) -> list[list[int]]:
    """Numbers of the examples of each draw of pictures."""
    rng = np.random.default_rng(0)
    num = len(set(groups.tolist()))
    return [
        [int(n) for picture in rng.integers(0, num, num) for n in np.flatnonzero(groups == picture)]
        for _ in range(RESAMPLES)
    ]


def rescored(
    task: Task,
    name: str,
    predictions: Mapping[str, str],
    references: Mapping[str, Any],
    groups: Units = ALONE,
) -> list[float]:
    """The score of each draw, by the task itself."""
    ids = list(references)
    scores = []
    for numbers in draws(groups):
        drawn = [ids[number] for number in numbers]
        ours = {str(place): predictions[key] for place, key in enumerate(drawn)}
        theirs = {str(place): references[key] for place, key in enumerate(drawn)}
        scores.append(task.score(ours, theirs)[name])
    return scores


def middle(scores: Sequence[float]) -> tuple[float, float]:
    """Percentiles 2.5 and 97.5, interpolated between neighbours."""
    ordered = sorted(scores)

    def at(share: float) -> float:
        place = share * (len(ordered) - 1)
        below = math.floor(place)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (place - below) * (ordered[above] - ordered[below])

    return at(0.025), at(0.975)


@pytest.mark.parametrize(
    ("task", "make", "name"),
    [
        (VQA(), vqa, "vqa_accuracy"),
        (VQA(), few_answers, "exact_match"),
        (VQA(), few_answers, "soft_score"),
        (GQA(), gqa, "accuracy"),
        (NLVR2(), nlvr, "accuracy"),
    ],
)
@pytest.mark.parametrize("groups", [ALONE, UNEVEN], ids=["alone", "uneven"])
def test_an_interval_is_that_of_scoring_every_draw(
    task: Task, make: Any, name: str, groups: Units
) -> None:
    predictions, references = examples(make)
    score = task.score(predictions, references)[name]
    assert 0.05 < score < 0.95
    values = example_values(task, name, predictions, references, score)
    found = interval_of_mean(values, groups, RESAMPLES)
    expected = middle(rescored(task, name, predictions, references, groups))
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-12)
    assert found.low < score < found.high


@pytest.mark.parametrize("groups", [ALONE, UNEVEN], ids=["alone", "uneven"])
def test_a_difference_is_paired(groups: Units) -> None:
    task = GQA()
    predictions, references = examples(gqa)
    answers = {key: reference["answer"] for key, reference in references.items()}
    better = predictions | {key: answers[key] for key in list(answers)[::4]}
    both = []
    for made in (better, predictions):
        score = task.score(made, references)["accuracy"]
        both.append(example_values(task, "accuracy", made, references, score))
    found = interval_of_difference(both[0], both[1], groups, RESAMPLES)
    ours, theirs = (
        rescored(task, "accuracy", made, references, groups) for made in (better, predictions)
    )
    expected = middle([a - b for a, b in zip(ours, theirs, strict=True)])
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-12)
    alone = [interval_of_mean(values, groups, RESAMPLES) for values in both]
    assert found.high - found.low < sum(interval.high - interval.low for interval in alone)


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_examples_that_are_all_right_have_an_exact_interval(right: float) -> None:
    """With a share of 1 - far of right pictures, all 60 are right once in 40 draws."""
    values, groups = np.full(180, right), np.repeat(np.arange(60), 3)
    found = interval_of_mean(values, groups)
    assert right in (found.low, found.high)
    far = width(found)
    assert (1 - far) ** 60 == pytest.approx(0.025)


def width(interval: Interval) -> float:
    return interval.high - interval.low


@pytest.mark.slow
@needs_java
def test_an_interval_of_cider_holds_the_document_frequencies() -> None:
    """Each draw is scored by the official scorer, told the frequencies of the whole."""
    task = Caption(scores=["CIDEr"])
    predictions, references = examples(captions)
    better = {key: given[1] for key, given in references.items()}
    better |= {key: predictions[key] for key in list(better)[::3]}
    both = []
    for made in (better, predictions):
        score = task.score(made, references)["CIDEr"]
        both.append(example_values(task, "CIDEr", made, references, score))
    ours, theirs = (scored_draws(made, references) for made in (better, predictions))
    for values, scores in zip(both, (ours, theirs), strict=True):
        found = interval_of_mean(values, ALONE, RESAMPLES)
        assert (found.low, found.high) == pytest.approx(middle(scores), abs=1e-9)
    found = interval_of_difference(both[0], both[1], ALONE, RESAMPLES)
    expected = middle([a - b for a, b in zip(ours, theirs, strict=True)])
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-9)
    assert found.low > 0


def scored_draws(predictions: Mapping[str, str], references: Mapping[str, Any]) -> list[float]:
    """CIDEr of each draw of pictures; the words of these captions are their tokens."""
    from pycocoevalcap.cider.cider_scorer import CiderScorer

    def scorer_of(keys: Sequence[str]) -> Any:
        scorer = CiderScorer()
        for key in keys:
            scorer += (predictions[key], references[key])
        return scorer

    ids = list(references)
    whole = scorer_of(ids)
    whole.compute_doc_freq()
    scores = []
    for numbers in draws(ALONE):
        drawn = scorer_of([ids[number] for number in numbers])
        drawn.document_frequency = whole.document_frequency
        scores.append(float(np.mean(drawn.compute_cider())))
    return scores


@pytest.mark.parametrize("name", ["consistency", "consistency_by_text"])
def test_a_score_that_is_no_mean_says_so(name: str) -> None:
    made, truth = examples(nlvr)
    names = {key: f"dev-{number % 7}-{number}-0" for number, key in enumerate(truth)}
    predictions = {names[key]: said for key, said in made.items()}
    references = {names[key]: reference for key, reference in truth.items()}
    for key in list(references)[::2]:
        predictions[key] = references[key]["answer"]
    score = NLVR2().score(predictions, references)[name]
    with pytest.raises(NoMean, match=f"^{name} is not a mean over examples"):
        example_values(NLVR2(), name, predictions, references, score)
