"""Baselines: columns of scores on the same data to compare a run's own with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from vlds.report.compute.checked_scores import Logged, checked_scores
from vlds.report.compute.results import TaskResult
from vlds.report.read.predictions import first_line, read_predictions
from vlds.runtime.run_folder import BLANK, PREDICTIONS

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
