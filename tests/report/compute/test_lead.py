"""The sentences on top of a page: which group is weak, and whether two runs are told apart."""

from __future__ import annotations

from dataclasses import replace
from math import comb
from pathlib import Path

import numpy as np
import pytest

from tests.toys.scored_runs import Runs
from vlds.report.baselines import FREQUENT
from vlds.report.collect import collect
from vlds.report.lead import ENOUGH, Weakest, pair_leads, run_leads, weakest_group
from vlds.report.predictions import Predictions
from vlds.report.scores import Difference, TaskResult, flip_test
from vlds.tasks import ImageClass


def mcnemar(better: int, worse: int) -> float:
    """The exact two-sided p-value."""
    count = better + worse
    tail = sum(comb(count, number) for number in range(min(better, worse) + 1))
    return min(1.0, 2 * tail / 2**count)


@pytest.mark.parametrize(("better", "worse"), [(4, 0), (6, 0), (9, 2), (25, 9), (30, 30)])
def test_with_one_question_a_picture_it_is_mcnemars_exact_test(better: int, worse: int) -> None:
    differences = np.array([1.0] * better + [-1.0] * worse + [0.0] * 20)
    p = flip_test(differences, np.arange(len(differences)))
    # Up to 13 pictures with a difference are counted, of more 10,000 patterns are drawn.
    assert p == pytest.approx(mcnemar(better, worse), abs=1e-12 if better + worse <= 13 else 0.01)


def test_questions_about_one_picture_count_once() -> None:
    differences = np.repeat([1.0, 1.0, 1.0, -1.0], 10)
    assert flip_test(differences, np.arange(40)) < 0.01
    assert flip_test(differences, np.repeat(np.arange(4), 10)) == mcnemar(3, 1)


def test_equal_runs_and_unlabelled_examples() -> None:
    assert flip_test(np.array([0.0, np.nan]), np.arange(2)) == 1.0


def result(groups: dict[str, tuple[int, int]], per_picture: int = 1) -> TaskResult:
    """Class -> (right, all); several examples in a row are of one picture."""
    references, values = {}, []
    for name, (right, count) in groups.items():
        for number in range(count):
            references[f"{name} {number}"] = name
            values.append(float(number < right))
    made = Predictions(Path("c.jsonl"), None, dict.fromkeys(references, ""), references, {}, {}, {})
    samples = np.arange(len(values)) // per_picture
    scores = {"accuracy": 0.5, **{f"accuracy/class/{name}": 0.5 for name in groups}}
    return TaskResult(ImageClass(), made, "accuracy", scores, None, "", np.array(values), samples)


def test_the_weakest_group_is_one_that_can_be_told_apart() -> None:
    clear = result({"cat": (30, 100), "dog": (80, 100), "owl": (60, 100), "elk": (0, ENOUGH - 1)})
    assert weakest_group(clear) == Weakest("class cat", 0.3, 100, 140 / 219)
    alike = result({"cat": (48, 100), "dog": (52, 100)})
    assert weakest_group(alike) == "None of 2 groups (class) can be told apart from the rest."
    assert weakest_group(result({"cat": (1, 5), "dog": (50, 100)})) is None
    # All wrong, but twenty of one in ten: chance gives that one time in eight.
    rare = result({"cat": (0, 20), "dog": (100, 900)})
    assert weakest_group(rare) == "None of 2 groups (class) can be told apart from the rest."
    # A hundred examples of five pictures are five.
    pictures = result({"cat": (40, 100), "dog": (60, 100)}, per_picture=20)
    assert isinstance(weakest_group(pictures), str)
    assert isinstance(weakest_group(result({"cat": (40, 100), "dog": (60, 100)})), Weakest)


@pytest.mark.parametrize("sizes", [[60] * 5, [120, *[12] * 10]], ids=["few", "one of many"])
def test_equally_good_groups_of_patients_are_seldom_named(sizes: list[int]) -> None:
    """Patients differ in how hard each kind of their pictures is; no kind is harder than another. A
    test that trusts few patients names one in every tenth to fifth run."""
    rng, classes, named = np.random.default_rng(0), ("cat", "dog", "owl"), 0
    units = np.repeat(np.arange(len(sizes)), sizes)
    kinds = np.concatenate([np.arange(size) % 3 for size in sizes])
    references = {str(i): classes[kind] for i, kind in enumerate(kinds)}
    made = Predictions(Path("c.jsonl"), None, dict.fromkeys(references, ""), references, {}, {}, {})
    scores = {"accuracy": 0.7, **{f"accuracy/class/{name}": 0.7 for name in classes}}
    for _ in range(200):
        ease = rng.beta(1.4, 0.6, (len(sizes), 3))
        values = (rng.random(len(units)) < ease[units, kinds]).astype(float)
        drawn = TaskResult(ImageClass(), made, "accuracy", scores, None, "", values, units)
        named += isinstance(weakest_group(drawn), Weakest)
    assert named <= 6


def test_a_group_of_one_patient_is_not_told_from_him() -> None:
    one = result({"cat": (0, 40), "dog": (60, 80)}, per_picture=40)
    assert weakest_group(one) is None


def test_a_run_has_a_sentence_for_each_task(runs: Runs) -> None:
    run = collect([runs.first]).only
    vqa, caption = run_leads(run, 1000)
    own, always = run.results["vqa"], run.baselines[FREQUENT]["vqa"]
    assert own.interval is not None
    assert vqa.score == f"{own.value:.3f}"
    assert vqa.interval == f"[{own.interval.low:.3f}, {own.interval.high:.3f}]"
    gap = own.value - always.value
    assert f"exact_match on 48 examples; {gap:.3f} above the most frequent answer" in vqa.text
    assert caption.text == "word_f1 on 10 examples."


def test_a_lead_that_can_be_chance_says_so(runs: Runs) -> None:
    run = collect([runs.first], resamples=100).only
    always = run.baselines[FREQUENT]["vqa"]
    alike = replace(always, values=run.results["vqa"].values)
    vqa, _ = run_leads(replace(run, baselines={FREQUENT: {"vqa": alike}}), 100)
    assert ", which can be chance (p = 1.000)." in vqa.text


def test_two_runs_are_told_apart_or_not(runs: Runs) -> None:
    report = collect([runs.first, runs.second])
    vqa, _ = pair_leads(report)
    (found, _) = report.differences["second"]
    assert isinstance(found, Difference)
    assert f"higher on {found.better} and lower on {found.worse} of 48 examples" in vqa.text
    told = "are told apart" if found.p < 0.05 else "are not told apart"
    assert vqa.text.endswith(f"The two {told} (p = {found.p:.3f}).")
