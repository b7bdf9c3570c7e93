"""Scores of several runs are only put beside each other where they are of the same data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from vlds.report.compute.collect import RunReport

Value = TypeVar("Value")


def told_apart(runs: Mapping[str, RunReport]) -> dict[str, RunReport]:
    """The runs, whose tasks are called "TASK on DATA" where runs score one task on different data:
    each is a column of its own then."""
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
    """A short name that tells data from the others."""
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
        run.run,
        scores=scores,
        score_curves=keyed(run.run.score_curves),
        gallery=[replace(e, task=names.get(e.task, e.task)) for e in run.run.gallery],
    )
    return replace(run, run=inputs, results=keyed(run.results), shown_as=names)
