"""Each task's score of a run, from its newest predictions, with an interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vlds.report.compute.bootstrap import (
    Groups,
    Values,
    groups_of,
    interval_of_difference,
    interval_of_mean,
)
from vlds.report.numbers import Interval
from vlds.report.read.predictions import Predictions
from vlds.report.read.scores import headline_of
from vlds.tasks.base import Task, task_of

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
