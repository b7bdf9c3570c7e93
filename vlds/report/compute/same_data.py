"""Scores of several runs share a column only where they are of the same data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from vlds.report.compute.report import RunReport

Value = TypeVar("Value")


def named_by_data(runs: Mapping[str, RunReport]) -> dict[str, RunReport]:
    """The runs; a task that they score on different data is called "TASK on DATA" and has a column
    for each data set."""
    data: dict[str, set[str | None]] = {}
    for run in runs.values():
        for task, entry in run.scores.tasks.items():
            data.setdefault(task, set()).add(entry.data)
    return {
        name: renamed(
            run,
            {
                task: f"{task} on {words(entry.data, data[task])}"
                for task, entry in run.scores.tasks.items()
                if len(data[task]) > 1
            },
        )
        for name, run in runs.items()
    }


def words(data: str | None, others: set[str | None]) -> str:
    """A short name that no other data of the task have."""
    if data is None:
        return "unknown data"
    name, _, content = data.partition("@")
    same_name = [other for other in others if other and other.partition("@")[0] == name]
    return name if len(same_name) == 1 else f"{name}@{content[:6]}"


def renamed(run: RunReport, names: Mapping[str, str]) -> RunReport:
    """The run with other names for some of its tasks."""

    def keyed(entries: Mapping[str, Value]) -> dict[str, Value]:
        return {names.get(key, key): value for key, value in entries.items()}

    scores = replace(run.scores, tasks=keyed(run.scores.tasks))
    inputs = replace(
        run.inputs,
        scores=scores,
        score_curves=keyed(run.inputs.score_curves),
        gallery=[replace(e, task=names.get(e.task, e.task)) for e in run.inputs.gallery],
    )
    return replace(
        run,
        inputs=inputs,
        results=keyed(run.results),
        predictions=keyed(run.predictions),
    )
