"""The report as tidy rows (CSV): one number a row, with all that tells what it is."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, fields
from io import StringIO

from vlds.report.compute.report import Report, RunReport
from vlds.report.compute.results import Difference


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number; fields that do not apply are empty."""

    run: str
    method: str
    model: str | None = None
    """The run or what it is compared with, where there is more than one column."""
    minus: str | None = None
    """The run whose score is subtracted."""
    task: str | None = None
    name: str
    """Score, or fact such as trainable_percent."""
    value: float
    low: float | None = None
    high: float | None = None
    """Ends of the 95 % interval."""
    resamples: int | None = None
    """That the interval is of."""
    examples: int | None = None
    data: str | None = None
    """Names and splits of the data sets, @ fingerprint."""
    step: int | None = None


def csv_text(report: Report) -> str:
    """All numbers of the report, unrounded, under a line of names."""
    names = [known.name for known in fields(Row)]
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([getattr(row, name) for name in names] for row in rows(report))
    return text.getvalue()


def rows(report: Report) -> Iterator[Row]:
    """Facts and scores of each run, then differences."""
    for name, run in report.runs.items():
        yield from fact_rows(name, run)
        yield from score_rows(name, run, report.resamples)
    yield from difference_rows(report)


def fact_rows(name: str, run: RunReport) -> Iterator[Row]:
    """Size, speed and length."""
    scores = run.scores
    named = {"total": "weights", "trainable": "trainable_weights", "percent": "trainable_percent"}
    facts = {named[what]: value for what, value in scores.trainable.items() if what in named}
    facts |= {f"bytes_per_rank/{what}": value for what, value in scores.bytes_per_rank.items()}
    speeds = scores.samples_per_second.items()
    facts |= {f"samples_per_second/{what}": value for what, value in speeds}
    if run.inputs.steps_done is not None:
        facts["steps"] = run.inputs.steps_done
    for what, value in facts.items():
        yield Row(run=name, method=method_of(run), name=what, value=value)


def score_rows(name: str, run: RunReport, resamples: int) -> Iterator[Row]:
    """All scores, parts included; the headline of each task with its interval."""
    columns = run.scores.columns
    for task, entry in run.scores.tasks.items():
        for column in columns:
            result = run.result(task, entry.metrics[0]) if column == columns[-1] else None
            for metric, value in entry.by_column.get(column, {}).items():
                interval = result.interval if result and metric == result.headline else None
                yield Row(
                    run=name,
                    method=method_of(run),
                    model=column if len(columns) > 1 else None,
                    task=task,
                    name=metric,
                    value=value,
                    low=interval.low if interval else None,
                    high=interval.high if interval else None,
                    resamples=resamples if interval else None,
                    examples=entry.examples,
                    data=entry.data,
                    step=result.predictions.step if result else None,
                )


def difference_rows(report: Report) -> Iterator[Row]:
    """Each further run less the first, where they can be compared."""
    for name, differences in report.differences.items():
        run = report.runs[name]
        for (task, metric), difference in zip(report.headlines, differences, strict=True):
            if isinstance(difference, Difference):
                yield Row(
                    run=name,
                    method=method_of(run),
                    minus=report.baseline,
                    task=task,
                    name=metric,
                    value=difference.value,
                    low=difference.interval.low,
                    high=difference.interval.high,
                    resamples=report.resamples,
                    examples=run.results[task].examples,
                    data=run.results[task].predictions.data,
                )


def method_of(run: RunReport) -> str:
    """What trains, in words; "" where the recipe is not known."""
    return run.facts.get("method", "")
