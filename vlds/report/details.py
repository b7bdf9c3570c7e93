"""All scores of a task, parts by parts: what is folded under it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from vlds.report.collect import Report
from vlds.report.scores import Scores, TaskScores
from vlds.report.tables import score_cells, table


def folded_details(scores: Scores) -> str:
    """Each task's scores, folded; a task with a single score has no more to show."""
    return "".join(
        f"<details><summary>{escape(summary(name, task))}</summary>"
        f"{detail_table(task, scores.columns)}</details>"
        for name, task in scores.tasks.items()
        if len(task.metrics) > 1
    )


def summary(name: str, task: TaskScores) -> str:
    """What a fold holds."""
    groups = [group for _, group in groups_of(task) if group]
    return ", ".join([f"{name}: all scores", *map(by, dict.fromkeys(groups))])


def detail_table(task: TaskScores, columns: Sequence[str]) -> str:
    """The whole scores, then under a line of its own each way of parting a score."""
    rows = []
    for (score, group), metrics in groups_of(task).items():
        if score:
            title = f"{score} {by(group)}" if group else score
            span = f'class="group" colspan="{1 + len(columns)}"'
            rows.append([f'<th scope="rowgroup" {span}>{escape(title)}</th>'])
        rows += [
            [f'<th scope="row">{escape(part)}</th>', *score_cells(task, metric, columns)]
            for metric, part in metrics.items()
        ]
    return table(["score", *columns], rows, numbers_from=1)


def by(group: str) -> str:
    """A way of parting, in words."""
    return f"by {group.replace('_', ' ')}"


def groups_of(task: TaskScores) -> dict[tuple[str, str], dict[str, str]]:
    """(score, way of parting it) -> its metrics and what each is of; ("", "") -> whole scores.

    "accuracy/structural/query" is the query part of accuracy by structural, "accuracy/open" a part
    of accuracy; a part may have slashes in its own name ("yes/no").
    """
    groups: dict[tuple[str, str], dict[str, str]] = {}
    for metric in task.metrics:
        score, *rest = metric.split("/", 2)
        if not rest:
            key, part = ("", ""), metric
        else:
            key, part = (score, rest[0] if len(rest) == 2 else ""), rest[-1]
        groups.setdefault(key, {})[metric] = part
    return groups


def merged(report: Report) -> Scores:
    """The runs' own scores, a column a run."""
    tasks = dict.fromkeys(task for run in report.runs.values() for task in run.scores.tasks)
    return Scores(list(report.runs), {task: merged_task(report, task) for task in tasks})


def merged_task(report: Report, task: str) -> TaskScores:
    """One task's scores, a column a run."""
    by_column = {}
    for name, run in report.runs.items():
        entry = run.scores.tasks.get(task)
        own = entry.by_column.get(run.scores.columns[-1]) if entry else None
        if own:
            by_column[name] = own
    headline = next((metric for known, metric in report.headlines if known == task), None)
    return TaskScores(by_column, headline=headline)
