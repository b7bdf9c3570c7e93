"""A score taken apart: what each example adds to it, where it is a mean over examples.

Some tasks say so themselves. Otherwise examples that are scored one by one tell whether the score
is their mean: it is tried on small draws and on the whole, and a score that is no such mean has no
values, and no interval.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlds.report.compute.bootstrap import Values
from vlds.tasks.base import Task

SECONDS_PER_EXAMPLE = 0.05
"""A score that needs longer for one example (one that starts Java, say) is not taken apart."""
TRIALS, TRIAL_SIZE = 3, 4
TOLERANCE = 1e-9


class NoMean(Exception):
    """Why a score has no values."""


def example_values(
    task: Task,
    name: str,
    predictions: Mapping[str, str],
    references: Mapping[str, Any],
    score: float,
) -> Values:
    """What each example adds to the score called `name`, in the references' order.

    Errors: NoMean where the score is no mean over examples, takes too long for each of them,
    cannot be computed here, or is another on these predictions.
    """
    values = values_of_task(task, name, predictions, references)
    if values is None:
        values = values_one_by_one(task, name, predictions, references)
    if not same(mean_of(values), score):
        raise NoMean(f"its predictions do not give the {name} that was logged")
    return values


def values_of_task(
    task: Task, name: str, predictions: Mapping[str, str], references: Mapping[str, Any]
) -> Values | None:
    """What the task itself says, NaN for examples without a reference; None where it says nothing.

    Errors: NoMean where the score cannot be computed here.
    """
    try:
        found = task.example_scores(name, predictions, references)
    except ValueError as error:
        raise NoMean(str(error)) from error
    if found is None:
        return None
    values = np.full(len(references), np.nan)
    values[[reference is not None for reference in references.values()]] = found
    return values


def values_one_by_one(
    task: Task, name: str, predictions: Mapping[str, str], references: Mapping[str, Any]
) -> Values:
    """Each example scored alone.

    Errors: NoMean where the score is not the mean of these, or takes too long for each.
    """

    def alone(key: str) -> float:
        return score_of(task, name, predictions, references, [key])

    ids = list(references)
    no_mean = NoMean(f"{name} is no mean over examples")
    rng = np.random.default_rng(0)
    for _ in range(TRIALS):
        places = rng.choice(len(ids), min(TRIAL_SIZE, len(ids)), replace=False)
        drawn = [ids[place] for place in places]
        started = time.monotonic()
        values = np.array([alone(key) for key in drawn])
        seconds = (time.monotonic() - started) / TRIAL_SIZE
        if not same(mean_of(values), score_of(task, name, predictions, references, drawn)):
            raise no_mean
        if seconds > SECONDS_PER_EXAMPLE:
            raise NoMean(f"{name} takes {seconds:.1f} s for each example")
    values = np.array([alone(key) for key in ids])
    if not same(mean_of(values), score_of(task, name, predictions, references, ids)):
        raise no_mean
    return values


def score_of(
    task: Task,
    name: str,
    predictions: Mapping[str, str],
    references: Mapping[str, Any],
    ids: Sequence[str],
) -> float:
    """One score of a task on some examples; NaN where nothing of these counts."""
    try:
        scores = task.score(
            {key: predictions[key] for key in ids}, {key: references[key] for key in ids}
        )
    except ValueError:  # a task may refuse examples of which none counts
        return np.nan
    return scores.get(name, np.nan)


def mean_of(values: Values) -> float:
    """Of those that count; NaN where none does."""
    counted = values[~np.isnan(values)]
    return float(counted.mean()) if len(counted) else np.nan


def same(mean: float, score: float) -> bool:
    """Whether they differ by rounding alone."""
    return bool(np.isclose(mean, score, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True))
