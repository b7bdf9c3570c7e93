"""Each task's score of a run, from its newest predictions, with an interval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vlds.report.numbers import (
    Groups,
    Interval,
    Values,
    groups_of,
    interval_of_difference,
    interval_of_mean,
)
from vlds.report.predictions import AGAIN, Predictions, first_line, read_predictions
from vlds.report.read import Metrics, headline_of
from vlds.runtime.folders import BLANK, PREDICTIONS
from vlds.tasks.base import Task, task_of

# Scores predictions as they are, whatever was logged. Their references may be damaged or another
# task's: what a task raises on them becomes one error that names file and line.


RAISED = (LookupError, TypeError, AttributeError, ArithmeticError)
"""What tasks raise on damaged or foreign references, which they do not check."""
LOGGED_TOLERANCE = 1e-6
"""Largest difference between a logged score and that of the predictions."""

Logged = Mapping[tuple[int | None, str], Mapping[str, float]]
"""Step and label of a task's list -> scores; training logs nothing under the step None."""


class DamagedReference(ValueError):
    """A reference that the task cannot read."""


def checked_scores(task: Task, predicted: Predictions) -> Mapping[str, float]:
    """The task's scores; {} where no reference is known. Afterwards `answer_of` and `correct` can
    read each reference.

    Errors: DamagedReference; ValueError where the scores cannot be computed on this machine.
    """
    for key, reference in predicted.references.items():
        if reference is not None:
            try:
                task.answer_of(reference)
                task.correct(predicted.predictions[key], reference)
            except (ValueError, *RAISED) as error:
                raise damaged(task, predicted, key, error) from None
    try:
        return task.score(predicted.predictions, predicted.references)
    except RAISED as error:
        raise damaged(task, predicted, first_damaged(task, predicted), error) from None


def damaged(task: Task, predicted: Predictions, key: str, error: Exception) -> DamagedReference:
    """The error about one example."""
    return DamagedReference(
        f"{predicted.file}, line {predicted.lines[key]}: its reference is not one of "
        f"{type(task).__name__} ({error!r:.200}); {AGAIN}"
    )


def first_damaged(task: Task, predicted: Predictions) -> str:
    """Id of the first example whose reference makes `score` raise. Bisects: scores a beginning of
    the examples, with all later references unknown."""
    keys = list(predicted.references)
    scored, raising = 0, len(keys)
    while raising - scored > 1:
        middle = (scored + raising) // 2
        known = {key: predicted.references[key] for key in keys[:middle]}
        try:
            task.score(predicted.predictions, dict.fromkeys(keys) | known)
        except RAISED:
            raising = middle
        except ValueError:  # for example, none of these can be scored
            scored = middle
        else:
            scored = middle
    return keys[raising - 1]


def logged_scores(lines: Iterable[Metrics]) -> Logged:
    """All scores in lines of metrics.jsonl."""
    return {
        (line["step"], task): scores
        for line in lines
        for task, scores in line.get("scores", {}).items()
    }


def scores_of_predictions(
    tasks: Mapping[str, Task],
    predictions: Mapping[str, Predictions],
    logged: Logged,
    notes: list[str],
) -> dict[str, Mapping[str, float]]:
    """Score what a run predicted: its name -> scores; {} where all references are unknown, or where
    the scores can neither be computed here nor were logged. Damaged predictions are left out.
    What is left out, and scores that were logged otherwise, get a note."""
    scores: dict[str, Mapping[str, float]] = {}
    for name, predicted in predictions.items():
        task, earlier = tasks[task_of(predicted.label)], logged.get((predicted.step, name), {})
        try:
            computed = checked_scores(task, predicted)
        except ValueError as error:
            if isinstance(error, DamagedReference) or not earlier:
                notes.append(f"No scores of {name}'s newest predictions: {error}")
            if not isinstance(error, DamagedReference):
                scores[name] = earlier
            continue
        # Scores may be missing on this machine only: the official ones need Java.
        if task.left_out() is not None:
            computed = {**earlier, **computed}
        if contradiction := contradiction_of(computed, earlier, task.headline):
            notes.append(f"{name}: {predicted.file} gives {contradiction}; the former is shown")
        scores[name] = computed
    return scores


def contradiction_of(
    computed: Mapping[str, float], logged: Mapping[str, float], headline: str | None
) -> str:
    """A score whose logged value differs from the computed one, with both values: the headline if
    it is one, else the first; "" if there is none."""
    for name, value in sorted(logged.items(), key=lambda entry: entry[0] != headline):
        known = computed.get(name)
        if known is None:
            return f"no {name}, and metrics.jsonl has {value:.6g}"
        if not np.isclose(known, value, LOGGED_TOLERANCE, LOGGED_TOLERANCE, equal_nan=True):
            return f"{name} {known:.6g}, and metrics.jsonl has {value:.6g}"
    return ""


TOLERANCE = 1e-9
"""Largest difference between a score and the mean of its examples."""


class NoMean(Exception):
    """Why a score is not a mean over examples that can be resampled."""


@dataclass(frozen=True)
class TaskResult:
    """One task of a run."""

    task: Task
    predictions: Predictions
    headline: str
    """The score that stands for the task."""
    scores: Mapping[str, float]
    interval: Interval | None
    """Of the headline score."""
    reason: str = ""
    """Why there is no interval."""
    values: Values | None = field(default=None, repr=False)
    """(examples,) what each example adds to the headline score, in the order of their ids."""
    groups: Groups | None = field(default=None, repr=False)
    """(examples,) number of each example's sample, in that order; None where the predictions do not
    say which sample an example is of, and examples are resampled instead."""

    @property
    def examples(self) -> int:
        """Those with a reference; the others are not scored."""
        return sum(known is not None for known in self.predictions.references.values())

    @property
    def value(self) -> float:
        """The headline score."""
        return self.scores[self.headline]


@dataclass(frozen=True)
class Difference:
    """How much more a run scores than another, on the same examples."""

    value: float
    interval: Interval


def results_of(
    tasks: Mapping[str, Task],
    predictions: Mapping[str, Predictions],
    scores: Mapping[str, Mapping[str, float]],
    resamples: int,
) -> dict[str, TaskResult]:
    """The result of each of the predictions that have scores."""
    return {
        name: result_of(tasks[task_of(predicted.label)], predicted, scores[name], resamples)
        for name, predicted in predictions.items()
        if scores[name]
    }


def result_of(
    task: Task, predicted: Predictions, scores: Mapping[str, float], resamples: int
) -> TaskResult:
    """The result of one task, from its predictions and all of its scores."""
    headline = headline_of(scores, task.headline)
    assert headline is not None
    values, interval, reason, groups = None, None, "", groups_in(task, predicted)
    if resamples:
        try:
            values = example_values(
                task, headline, predicted.predictions, predicted.references, scores[headline]
            )
            drawn = resampled(groups, values)
            if drawn.max(initial=0) == 0:
                raise NoMean("one sample alone does not tell how far another would lie")
            interval = interval_of_mean(values, drawn, resamples)
        except NoMean as error:
            reason = str(error)
    return TaskResult(task, predicted, headline, scores, interval, reason, values, groups)


def example_values(
    task: Task,
    name: str,
    predictions: Mapping[str, str],
    references: Mapping[str, Any],
    score: float,
) -> Values:
    """What each example adds to the score called `name`, in the references' order; NaN for those
    that do not count.

    Errors: NoMean where the score is not a mean over examples, cannot be computed here, or is
    another one on these predictions.
    """
    try:
        scores = task.example_scores(name, predictions, references)
    except ValueError as error:
        raise NoMean(str(error)) from error
    if scores is None:
        raise NoMean(f"{name} is not a mean over examples")
    values = np.full(len(references), np.nan)
    values[[reference is not None for reference in references.values()]] = scores
    if not np.isclose(mean_of(values), score, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
        raise NoMean(f"its predictions do not give the {name} that was logged")
    return values


def mean_of(values: Values) -> float:
    """The mean of those that count; NaN where none does."""
    counted = values[~np.isnan(values)]
    return float(counted.mean()) if len(counted) else np.nan


def groups_in(task: Task, predicted: Predictions) -> Groups | None:
    """Which examples are of one sample; None where the predictions do not say it of all."""
    if task.unit == "sample":
        return np.arange(len(predicted.references))
    if len(predicted.samples) < len(predicted.references):
        return None
    return groups_of(predicted.samples[key] for key in predicted.references)


def resampled(groups: Groups | None, values: Values) -> Groups:
    """What a resample draws: samples, or examples if their samples are unknown."""
    return np.arange(len(values)) if groups is None else groups


def difference(
    result: TaskResult | None, baseline: TaskResult | None, resamples: int
) -> Difference | str:
    """The first less the second, both on the same draws; or why they cannot be compared."""
    if result is None or baseline is None:
        return "not scored in both"
    if result.predictions.references != baseline.predictions.references:
        return "other examples"
    if result.values is None or baseline.values is None or result.interval is None:
        return "no interval"
    # Equal examples are of equal samples, which one of the runs may not know.
    groups = baseline.groups if result.groups is None else result.groups
    groups = resampled(groups, result.values)
    interval = interval_of_difference(result.values, baseline.values, groups, resamples)
    return Difference(mean_of(result.values) - mean_of(baseline.values), interval)


Results = Mapping[str, Mapping[str, TaskResult]]
"""Run -> task -> result."""


def reasons(runs: Results) -> list[str]:
    """Which tasks have no interval, and why."""
    shared = shared_texts(runs, lambda result: result.reason)
    return [f"No interval for {whose}: {reason}." for whose, reason in shared]


def drawn_by_example(runs: Results) -> list[str]:
    """Whose intervals resample single examples, because their samples are unknown."""
    why = "the predictions do not say which sample each example is of"
    shared = shared_texts(runs, lambda r: why if r.interval and r.groups is None else "")
    return [
        f"For {whose} single examples were drawn: {reason}. Where several are of one picture, this "
        "interval is too narrow; evaluate the run again."
        for whose, reason in shared
    ]


def shared_texts(runs: Results, text_of: Callable[[TaskResult], str]) -> list[tuple[str, str]]:
    """(task, with its runs where there are several; text) of the results that have one; runs with
    the same text stand together."""
    runs_of: dict[tuple[str, str], list[str]] = {}
    for name, results in runs.items():
        for task, result in results.items():
            if text := text_of(result):
                runs_of.setdefault((task, text), []).append(name)
    return [
        (f"{task} of {', '.join(names)}" if len(runs) > 1 else task, text)
        for (task, text), names in runs_of.items()
    ]


# Baselines: columns of scores on the same data to compare a run's own with.


FREQUENT, BLIND, FROZEN = "most frequent answer", "without pictures", "before training"
Column = dict[str, Mapping[str, float]]
"""Task -> scores."""


def baselines_of(
    run: Path, results: Mapping[str, TaskResult], logged: Logged, notes: list[str]
) -> dict[str, Column]:
    """Up to three columns: one answer to everything; the same model with blank pictures, if `vlds
    evaluate --data.blank_images true` has scored it; the model before its first step, if
    `training.evaluate_first` has. What cannot be read or scored here gets a note."""
    columns: dict[str, Column] = {FREQUENT: {}, BLIND: {}, FROZEN: {}}
    for name, result in results.items():
        try:
            columns[FREQUENT][name] = frequent_scores(result)
            columns[BLIND][name] = blind_scores(run, name, result)
            columns[FROZEN][name] = frozen_scores(run, name, result, logged)
        except ValueError as error:
            notes.append(f"Not all scores to compare {name} with: {error}")
    filled = {
        label: {name: scores for name, scores in column.items() if scores}
        for label, column in columns.items()
    }
    return {label: column for label, column in filled.items() if column}


def frequent_answer(result: TaskResult) -> str | None:
    """The answer that is right most often in the data; None for tasks of free text."""
    task, references = result.task, result.predictions.references.values()
    if task.unit != "annotation":
        return None
    known = (task.answer_of(reference) for reference in references if reference is not None)
    answers = Counter(answer for answer in known if answer is not None)
    return min(answers, key=lambda answer: (-answers[answer], answer), default=None)


def frequent_scores(result: TaskResult) -> Mapping[str, float]:
    """The scores of giving that answer to everything."""
    if (answer := frequent_answer(result)) is None:
        return {}
    references = result.predictions.references
    return result.task.score(dict.fromkeys(references, answer), references)


def blind_scores(run: Path, label: str, result: TaskResult) -> Mapping[str, float]:
    """Scores of the predictions that were made without pictures, on the same data."""
    file = run / PREDICTIONS / BLANK / f"{label}.jsonl"
    if not file.is_file():
        return {}
    predicted = read_predictions(file)
    if predicted.data != result.predictions.data:
        return {}
    return checked_scores(result.task, predicted)


def frozen_scores(run: Path, label: str, result: TaskResult, logged: Logged) -> Mapping[str, float]:
    """Scores that the run logged before its first step, on the same data."""
    file = run / PREDICTIONS / "step-00000000" / f"{label}.jsonl"
    made = result.predictions
    first = first_line(file) if made.step != 0 and file.is_file() else None
    if first is None or first.data != made.data:
        return {}
    return logged.get((0, label), {})
