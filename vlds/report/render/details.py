"""The tables folded under a task: all of its scores, whole and by group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from vlds.metrics.tables import split
from vlds.report.read.scores import Scores, TaskScores
from vlds.report.render.table import Row, Table
from vlds.report.render.tables import direction, score_cells


class Fold(NamedTuple):
    """A table behind a line."""

    summary: str
    table: Table


def folded_details(scores: Scores) -> list[Fold]:
    """Each task's scores; a task with a single score has no more to show."""
    return [
        Fold(summary(name, task), detail_table(task, scores.columns))
        for name, task in scores.tasks.items()
        if len(task.metrics) > 1
    ]


def summary(name: str, task: TaskScores) -> str:
    """What a fold holds."""
    groups = [group for _, group in groups_of(task) if group]
    return ", ".join([f"{name}: all scores", *map(by, dict.fromkeys(groups))])


def detail_table(task: TaskScores, columns: Sequence[str]) -> Table:
    """The whole scores, then each score by group, under a title line."""
    rows = []
    for (score, group), metrics in groups_of(task).items():
        if score:
            rows.append(Row(f"{score} {by(group)}{direction(task, score)}", is_group=True))
        for metric, part in metrics.items():
            head = part if score else f"{metric}{direction(task, metric)}"
            rows.append(Row(head, score_cells(task, metric, columns)))
    return Table(["score", *columns], rows)


def by(group: str) -> str:
    """A way of grouping examples, in words."""
    return f"by {group.replace('_', ' ')}"


def groups_of(task: TaskScores) -> dict[tuple[str, str], dict[str, str]]:
    """(score, way of grouping) -> its metrics and the group of each; ("", "") -> whole scores."""
    groups: dict[tuple[str, str], dict[str, str]] = {}
    for metric in task.metrics:
        score, way, part = split(metric) or ("", "", metric)
        groups.setdefault((score, way), {})[metric] = part
    return groups
