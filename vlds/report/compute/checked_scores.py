"""Scores predictions as they are, whatever was logged. Their references may be damaged or another
task's: what a task raises on them becomes one error that names file and line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from vlds.report.read.inputs import Metrics
from vlds.report.read.predictions import AGAIN, Predictions
from vlds.tasks.base import Task, task_of

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
