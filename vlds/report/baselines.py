"""Columns beside a run's own scores: what its scores on the same data are to be compared with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from vlds.report.inputs import read_metrics
from vlds.report.predictions import first_data, read_predictions
from vlds.report.results import TaskResult
from vlds.runtime.run_folder import BLANK, PREDICTIONS

FREQUENT, BLIND, FROZEN = "most frequent answer", "without pictures", "before training"
Column = dict[str, Mapping[str, float]]
"""Task -> scores."""


def baselines_of(run: Path, results: Mapping[str, TaskResult]) -> dict[str, Column]:
    """The columns that can be had: one answer to everything; the same model with blank pictures,
    where `vlds evaluate --data.blank_images true` has scored it; the model before its first step,
    where `training.evaluate_first` did.

    Errors: ValueError for damaged predictions.
    """
    found = {
        FREQUENT: {name: frequent_scores(result) for name, result in results.items()},
        BLIND: {name: blind_scores(run, name, result) for name, result in results.items()},
        FROZEN: {name: frozen_scores(run, name, result) for name, result in results.items()},
    }
    columns = {
        label: {name: scores for name, scores in column.items() if scores}
        for label, column in found.items()
    }
    return {label: column for label, column in columns.items() if column}


def frequent_answer(result: TaskResult) -> str | None:
    """The answer that is right most often in the data; None for tasks of free text."""
    task, references = result.task, result.references.values()
    if task.unit != "annotation":
        return None
    told = (task.answer_of(reference) for reference in references if reference is not None)
    answers = Counter(answer for answer in told if answer is not None)
    return min(answers, key=lambda answer: (-answers[answer], answer), default=None)


def frequent_scores(result: TaskResult) -> Mapping[str, float]:
    """Scores of giving that answer to everything."""
    if (answer := frequent_answer(result)) is None:
        return {}
    return result.task.score(dict.fromkeys(result.references, answer), result.references)


def blind_scores(run: Path, label: str, result: TaskResult) -> Mapping[str, float]:
    """Scores of the predictions that were made without pictures, on the same data."""
    file = run / PREDICTIONS / BLANK / f"{label}.jsonl"
    if not file.is_file():
        return {}
    made = read_predictions(file)
    if made.data != result.data:
        return {}
    return result.task.score(made.predictions, made.references)


def frozen_scores(run: Path, label: str, result: TaskResult) -> Mapping[str, float]:
    """Scores that the run logged before its first step, on the same data."""
    file = run / PREDICTIONS / "step-00000000" / f"{label}.jsonl"
    if result.step == 0 or not file.is_file() or first_data(file) != result.data:
        return {}
    logged = (line for line in read_metrics(run / "metrics.jsonl") if line["step"] == 0)
    found: Mapping[str, float] = {}
    for line in logged:
        found = line.get("scores", {}).get(label, found)
    return found
