"""A score taken apart: what each example adds to it, where it is a mean over examples.

A task knows how to score many examples, not what each of them adds. Scored one by one, they tell
whether the score is their mean: it is tried on small draws and on the whole, and a score that is
no such mean (CIDEr, whose weights come from all pictures together) has no values, and no interval.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vlds.metrics.word_f1 import word_f1
from vlds.report.bootstrap import Values
from vlds.tasks.base import Task

SECONDS_PER_EXAMPLE = 0.05
"""A score that needs longer for one example (one that starts Java, say) is not taken apart."""
TRIALS, TRIAL_SIZE = 3, 4
TOLERANCE = 1e-9

Scorer = Callable[[str, Any], float]

MEANS: Mapping[str, Scorer] = {
    "word_f1": lambda prediction, reference: word_f1([prediction], [reference])
}
"""Means over examples whose task computes something slow beside them (Java): how to have them
alone."""


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

    Errors: NoMean where the score is no mean over examples, takes too long for each of them, or is
    another on these predictions.
    """
    ids = list(references)

    def alone(key: str) -> float:
        prediction, reference = predictions[key], references[key]
        if name not in MEANS:
            return score_of(task, name, {key: prediction}, {key: reference})
        return np.nan if reference is None else MEANS[name](prediction, reference)

    if name not in MEANS:
        try_on_draws(task, name, predictions, references, alone)
    values = np.array([alone(key) for key in ids])
    if not np.isclose(mean_of(values), score, rtol=TOLERANCE, atol=TOLERANCE):
        raise NoMean(f"its predictions do not give the {name} that was logged")
    return values


def try_on_draws(
    task: Task,
    name: str,
    predictions: Mapping[str, str],
    references: Mapping[str, Any],
    alone: Callable[[str], float],
) -> None:
    """Score small draws whole and example by example.

    Errors: NoMean where the two differ, or an example takes too long.
    """
    rng = np.random.default_rng(0)
    ids = list(references)
    for _ in range(TRIALS):
        drawn = [ids[number] for number in rng.integers(0, len(ids), TRIAL_SIZE)]
        started = time.monotonic()
        values = np.array([alone(key) for key in drawn])
        seconds = (time.monotonic() - started) / TRIAL_SIZE
        places = range(TRIAL_SIZE)  # an example may be drawn twice
        whole = score_of(
            task,
            name,
            {str(place): predictions[drawn[place]] for place in places},
            {str(place): references[drawn[place]] for place in places},
        )
        if not np.isclose(whole, mean_of(values), rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
            raise NoMean(f"{name} is no mean over examples")
        if seconds > SECONDS_PER_EXAMPLE:
            raise NoMean(f"{name} takes {seconds:.1f} s for each example")


def score_of(
    task: Task, name: str, predictions: Mapping[str, str], references: Mapping[str, Any]
) -> float:
    """One score of a task; NaN where nothing of these examples counts."""
    try:
        return task.score(predictions, references).get(name, np.nan)
    except ValueError:  # a task may refuse examples of which none counts
        return np.nan


def mean_of(values: Values) -> float:
    """Of those that count; NaN where none does."""
    counted = values[~np.isnan(values)]
    return float(counted.mean()) if len(counted) else np.nan
