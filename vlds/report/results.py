"""Each task's score of a run, from its newest predictions, with an interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlds.report.bootstrap import Interval, Values, interval_of_difference, interval_of_mean
from vlds.report.example_values import NoMean, example_values, mean_of
from vlds.report.inputs import read_metrics
from vlds.report.predictions import Predictions, newest_predictions
from vlds.tasks.base import SPLITS, Task, label_of


@dataclass(frozen=True)
class TaskResult:
    """One task of a run."""

    headline: str
    """The score that stands for the task."""
    scores: Mapping[str, float]
    examples: int
    """With a reference; the others are not scored."""
    folder: Path
    """Of the predictions, relative to the run folder."""
    step: int | None
    """Of the training; None for `vlds evaluate`."""
    interval: Interval | None
    """Of the headline score."""
    reason: str = ""
    """Why there is no interval."""
    values: Values | None = field(default=None, repr=False)
    """(examples,) what each example adds to the headline score, in the order of their ids."""
    references: Mapping[str, Any] = field(default_factory=dict, repr=False)

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
    run: Path, tasks: Mapping[str, Task], resamples: int, notes: list[str]
) -> dict[str, TaskResult]:
    """Score what a run predicted: label of a task's list (TASK, TASK.test) -> result. A task whose
    references are all unknown is left out, and with a note one whose scores cannot be computed
    here."""
    logged = {
        (line["step"], task): scores
        for line in read_metrics(run / "metrics.jsonl")
        for task, scores in line.get("scores", {}).items()
    }
    found = newest_predictions(run)
    results = {}
    labels = [(label_of(name, split), tasks[name]) for name in tasks for split in SPLITS]
    for name, task in labels:
        if name not in found:
            continue
        made = found[name]
        try:
            scores = logged.get((made.step, name)) or task.score(made.predictions, made.references)
            if scores:
                folder = made.file.parent.relative_to(run)
                results[name] = result_of(task, made, scores, folder, resamples)
        except ValueError as error:
            notes.append(f"No scores of {name}'s newest predictions: {error}")
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            notes.append(
                f"No scores of {name}'s newest predictions: their references are not those of "
                f"{type(task).__name__} ({error!r}); evaluate the run anew"
            )
    return results


def result_of(
    task: Task, made: Predictions, scores: Mapping[str, float], folder: Path, resamples: int
) -> TaskResult:
    """The result of one task, from its predictions and all of its scores."""
    wanted = task.headline
    headline = wanted if wanted is not None and wanted in scores else next(iter(scores))
    values, interval, reason = None, None, ""
    if resamples:
        try:
            values = example_values(
                task, headline, made.predictions, made.references, scores[headline]
            )
            interval = interval_of_mean(values, resamples)
        except NoMean as error:
            reason = str(error)
    known = {key: value for key, value in made.references.items() if value is not None}
    return TaskResult(
        headline, scores, len(known), folder, made.step, interval, reason, values, made.references
    )


def difference(
    result: TaskResult | None, baseline: TaskResult | None, resamples: int
) -> Difference | str:
    """The first less the second, paired by example; or why they cannot be compared."""
    if result is None or baseline is None:
        return "not scored in both"
    if result.references != baseline.references:
        return "other examples"
    if result.values is None or baseline.values is None:
        return "no interval"
    value = mean_of(result.values) - mean_of(baseline.values)
    return Difference(value, interval_of_difference(result.values, baseline.values, resamples))


def reasons(runs: Mapping[str, Mapping[str, TaskResult]]) -> list[str]:
    """Why tasks have no interval; runs with the same reason stand together."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, results in runs.items():
        for task, result in results.items():
            if result.reason:
                found.setdefault((task, result.reason), []).append(name)
    said = []
    for (task, reason), names in found.items():
        whose = f" of {', '.join(names)}" if len(runs) > 1 else ""
        said.append(f"No interval for {task}{whose}: {reason}.")
    return said
