"""The scores of several runs beside each other, as if they were models of one run."""

from __future__ import annotations

from vlds.report.compute.baselines import FREQUENT
from vlds.report.compute.collect import Report
from vlds.report.read.scores import Scores, TaskScores


def merged(report: Report) -> Scores:
    """The runs' own scores, a column a run."""
    tasks = dict.fromkeys(task for run in report.runs.values() for task in run.scores.tasks)
    return Scores(list(report.runs), {task: merged_task(report, task) for task in tasks})


def merged_task(report: Report, task: str) -> TaskScores:
    """One task's scores, a column a run."""
    by_column, lower = {}, set[str]()
    for name, run in report.runs.items():
        entry = run.scores.tasks.get(task)
        lower |= set(entry.lower_is_better if entry else ())
        own = entry.by_column.get(run.scores.columns[-1]) if entry else None
        if own:
            by_column[name] = own
    headline = next((metric for known, metric in report.headlines if known == task), None)
    return TaskScores(by_column, headline=headline, lower_is_better=lower)


def frequent_scores(report: Report) -> list[float | None]:
    """Of each headline, the score of giving the most frequent answer to everything: the same for
    all runs."""
    found: list[float | None] = []
    for task, metric in report.headlines:
        entries = (run.scores.tasks.get(task) for run in report.runs.values())
        scores = (entry.by_column.get(FREQUENT, {}).get(metric) for entry in entries if entry)
        found.append(next((score for score in scores if score is not None), None))
    return found
