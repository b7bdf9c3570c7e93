"""Which tables `vlds report` shows, and what is in their cells: scores of a run beside others, the
runs side by side, their differences, and all numbers as CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vlds.report.baselines import FREQUENT
from vlds.report.numbers import Number, best_note, clear_best
from vlds.report.read import Scores, TaskScores
from vlds.report.report import Report, RunReport, is_same_data, mean_text, seed_groups
from vlds.report.scores import Difference
from vlds.report.tables import (
    BEST,
    Cell,
    Table,
    TableRow,
    csv_lines,
    interval_text,
    p_text,
    score_text,
    speed_text,
)
from vlds.runtime.terminal import bytes_text
from vlds.tasks.metrics.plain_scores import split


def summary_table(scores: Scores) -> Table:
    """Headline scores for the terminal: a row for each task, a column for each model."""
    rows = []
    for name, task in scores.tasks.items():
        for metric in task.metrics[:1]:
            values = [task.by_column.get(label, {}).get(metric) for label in scores.columns]
            count = "" if task.examples is None else f"{task.examples:,}"
            cells = [Cell(text) for text in (metric, count, *map(score_text, values))]
            rows.append(TableRow(name, cells))
    return Table(["task", "score", "examples", *scores.columns], rows, numbers_from=2)


def score_table(run: RunReport) -> Table:
    """One run's headline scores for the page. The run's own column comes first, where a phone shows
    it too, and has intervals."""
    rows = []
    columns = own_first(run.scores)
    for name, task in run.scores.tasks.items():
        for metric in task.metrics[:1]:
            result = run.result(name, metric)
            own, *others = score_cells(task, metric, columns)
            own = Cell(
                own.text, interval=interval_text(result.interval if result else None), bar=own.bar
            )
            notes = filter(None, [metric + direction(task, metric), task.data_text])
            rows.append(TableRow(name, [own, *others], list(notes)))
    return Table(["task", *columns], rows)


def own_first(scores: Scores) -> list[str]:
    """The columns on the page of one run: its own, which is the last, stands first."""
    return [*scores.columns[-1:], *scores.columns[:-1]]


def direction(task: TaskScores, metric: str) -> str:
    """A remark where a lower score is better, which readers do not expect."""
    return " (lower is better)" if task.is_lower_better(metric) else ""


def score_cells(task: TaskScores, metric: str, columns: Sequence[str]) -> list[Cell]:
    """A score in each column. All bars of a row have one scale, up to 1 or to the largest score; a
    row with a negative score has none."""
    # Of [0.4, 3.0], such as CIDEr: bars of 0.13 and 1. Of [0.4, 0.6]: of 0.4 and 0.6.
    values = [task.by_column.get(label, {}).get(metric) for label in columns]
    known = [value for value in values if value is not None]
    whole, has_bars = max([1.0, *known]), min(known, default=0.0) >= 0
    return [
        Cell(score_text(value), bar=value / whole if value is not None and has_bars else None)
        for value in values
    ]


def folded_details(scores: Scores, columns: Sequence[str]) -> dict[str, Table]:
    """A line for each task -> the table of all its scores, which is folded behind it: whole scores,
    then each score by group, under a title. A task with a single score has no more to show."""
    details = {}
    for name, task in scores.tasks.items():
        # (score, way of grouping) -> metric -> group. "accuracy/type/yes" is under ("accuracy",
        # "type") as "yes", the whole "accuracy" under ("", "").
        groups: dict[tuple[str, str], dict[str, str]] = {}
        for metric in task.metrics:
            score, way, group = split(metric) or ("", "", metric)
            groups.setdefault((score, way), {})[metric] = group
        rows = []
        for (score, way), metrics in groups.items():
            if score:
                title = f"{score} by {way.replace('_', ' ')}{direction(task, score)}"
                rows.append(TableRow(title, is_group=True))
            for metric, group in metrics.items():
                head = group if score else f"{metric}{direction(task, metric)}"
                rows.append(TableRow(head, score_cells(task, metric, columns)))
        if len(task.metrics) > 1:
            ways = dict.fromkeys(f"by {way.replace('_', ' ')}" for _, way in groups if way)
            details[", ".join([f"{name}: all scores", *ways])] = Table(["score", *columns], rows)
    return details


def fact_table(run: RunReport) -> Table:
    """How a run was trained, its size and speed."""
    facts = dict(run.facts)
    if counts := run.scores.trainable:
        facts["weights that train"] = (
            f"{counts['trainable']:,.0f} of {counts['total']:,.0f} ({counts['percent']:.2f} %)"
        )
    for what, count in run.scores.bytes_per_rank.items():
        facts[f"{what}, bytes per rank"] = bytes_text(count)
    for what, speed in run.scores.samples_per_second.items():
        facts[f"{what}, examples a second"] = speed_text(speed)
    return Table([], [TableRow(what, [Cell(value, "")]) for what, value in facts.items()])


def runs_table(report: Report, *, on_page: bool) -> Table:
    """A row for each run, below one for the most frequent answer. Cells: scores with intervals, the
    share that trains, bytes, speed.

    On the page, scores come first, with their data in the heads; below the runs stand means over
    the seeds of what is otherwise the same run, of which one may be the best. To paste elsewhere,
    method and facts come first.
    """
    rows, no_facts = [], [Cell("")] * 4

    def add(head: str, scores: Sequence[Cell], facts: Sequence[Cell], note: str = "") -> None:
        # A page has the method in the note below the head.
        cells = [*scores, *facts[1:]] if on_page else [*facts, *scores]
        rows.append(TableRow(head, cells, [note] if note else []))

    # The score of the most frequent answer, which is the same for all runs on the same data.
    frequent: list[float | None] = []
    for task, metric in report.headlines:
        of_runs = report.runs.values() if is_same_data(report.runs.values(), task) else ()
        known = (run.score(task, metric, FREQUENT) for run in of_runs)
        frequent.append(next((score for score in known if score is not None), None))
    if any(value is not None for value in frequent):
        add(FREQUENT, [Cell(score_text(value)) for value in frequent], no_facts)
    partitions = {run.inputs.partition for run in report.runs.values()} - {""}
    for name, run in report.runs.items():
        scores = []
        for headline in report.headlines:
            result = run.result(*headline)
            interval = interval_text(result.interval if result else None)
            scores.append(Cell(score_text(run.score(*headline)), interval=interval))
        method, partition = run.facts.get("method", ""), run.inputs.partition
        trainable, memory = run.scores.trainable, run.scores.bytes_per_rank
        speed = run.scores.samples_per_second.get("training")
        # Bytes compare only among runs that divide them alike; where some do not, each says how.
        says_partition = memory and partition and len(partitions) > 1
        facts = [
            Cell(method),
            Cell(f"{trainable['percent']:.2f} %" if trainable else ""),
            Cell(
                bytes_text(sum(memory.values())) if memory else "",
                notes=[partition] if says_partition else [],
            ),
            Cell("" if speed is None else speed_text(speed)),
        ]
        note = "; ".join(filter(None, [method if on_page else "", run.stopped]))
        add(name, scores, facts, note)
    if not on_page:
        heads = [f"{task} {metric}" for task, metric in report.headlines]
        costs = ["trains", "bytes per rank", "examples/s"]
        return Table(["run", "method", *costs, *heads], rows, numbers_from=2)
    best = best_groups(report)
    for names in seed_groups(report):
        means = [
            Cell(
                mean_text([report.runs[name].score(*headline) for name in names]),
                BEST if best.get(headline) == names else "number",
            )
            for headline in report.headlines
        ]
        add(f"mean of {len(names)} seeds", means, no_facts, ", ".join(names))
    costs = ["trains", "bytes per rank", "examples a second"]
    return Table(["run", *headline_heads(report), *costs], rows)


def best_groups(report: Report) -> dict[tuple[str, str], list[str]]:
    """(task, score) -> the runs whose mean is the best, by the rule of `vlds compare`: with enough
    seeds in common with all other finished runs. Without an entry where no group is."""
    # A run with a single seed has no mean, but it may be better than all that have: with it there
    # is no best, as it shares too few seeds with them.
    groups = seed_groups(report, fewest=1)
    best = {}
    for task, metric in report.headlines:
        numbers = []
        for names in groups:
            scored = {
                report.runs[name].inputs.seed: value
                for name in names
                if (value := report.runs[name].score(task, metric)) is not None
            }
            numbers.append(Number(list(scored.values()), seeds=list(scored)))
        entries = [
            run.scores.tasks[task] for run in report.runs.values() if task in run.scores.tasks
        ]
        lower = any(entry.is_lower_better(metric) for entry in entries)
        index = clear_best(numbers, lower_is_better=lower)
        if index is not None and is_same_data(report.runs.values(), task):
            best[task, metric] = groups[index]
    return best


def seed_notes(report: Report) -> list[str]:
    """What the rows of means show, and when one of them is the best."""
    if not seed_groups(report):
        return []
    notes = [
        "Mean +/- standard deviation (n - 1) over runs whose recipes differ in seed and output "
        "alone: how far another seed moves a score. The brackets do not show that."
    ]
    if len(seed_groups(report, fewest=1)) > 1:
        notes.append(best_note(bool(best_groups(report))))
    return notes


def headline_heads(report: Report) -> list[str]:
    """Heads of the page's columns of scores: the task, and below it the score and its data."""
    data = report.data_texts
    return ["\n".join(filter(None, [t, metric, data.get(t)])) for t, metric in report.headlines]


def difference_table(report: Report, heads: Sequence[str]) -> Table:
    """Each run less the first, the same examples drawn for both; bold where the test tells them
    apart. Without rows where none can be compared."""
    rows = []
    for name, differences in report.differences.items():
        cells = []
        for found in differences:
            if isinstance(found, Difference):
                look = "number sure" if found.is_sure else "number"
                notes = [p_text(found.p), f"{found.better:,} higher, {found.worse:,} lower"]
                cell = Cell(f"{found.value:+.3f}", look, interval_text(found.interval), notes)
            else:
                cell = Cell("-", notes=[found])
            cells.append(cell)
        rows.append(TableRow(name, cells))
    return Table(heads, rows)


CSV_NAMES = (
    "run", "method", "model", "minus", "task", "name", "value", "low", "high", "resamples",
    "p", "examples", "data", "step",
)  # fmt: skip
"""Columns of the CSV: one number a line, and everything that identifies it; see docs/report.md."""


def csv_text(report: Report) -> str:
    """All numbers of the report, unrounded: facts and scores of each run, then differences."""
    lines: list[Mapping[str, object]] = []
    for name, run in report.runs.items():
        scores, steps = run.scores, run.inputs.steps_done
        known = {"run": name, "method": run.facts.get("method", "")}
        named = {
            "total": "weights",
            "trainable": "trainable_weights",
            "percent": "trainable_percent",
        }
        facts = {named[what]: value for what, value in scores.trainable.items() if what in named}
        facts |= {f"bytes_per_rank/{what}": value for what, value in scores.bytes_per_rank.items()}
        speeds = scores.samples_per_second.items()
        facts |= {f"samples_per_second/{what}": value for what, value in speeds}
        facts |= {} if steps is None else {"steps": steps}
        for what, value in facts.items():
            lines.append({**known, "name": what, "value": value})
        for task, entry in scores.tasks.items():
            for column in scores.columns:
                # The last column is the run's own. Only its headline has an interval, and only if
                # its examples are known.
                result = (
                    run.result(task, entry.metrics[0]) if column == scores.columns[-1] else None
                )
                for metric, value in entry.by_column.get(column, {}).items():
                    interval = result.interval if result and metric == result.headline else None
                    ends = {"low": interval.low, "high": interval.high} if interval else {}
                    lines.append({
                        **known,
                        **ends,
                        "model": column if len(scores.columns) > 1 else None,
                        "task": task,
                        "name": metric,
                        "value": value,
                        "resamples": report.resamples if interval else None,
                        "examples": entry.examples,
                        "data": entry.data,
                        "step": result.predictions.step if result else None,
                    })  # fmt: skip
    for name, differences in report.differences.items():
        run = report.runs[name]
        for (task, metric), difference in zip(report.headlines, differences, strict=True):
            if isinstance(difference, Difference):
                lines.append({
                    "run": name,
                    "method": run.facts.get("method", ""),
                    "minus": report.baseline,
                    "task": task,
                    "name": metric,
                    "value": difference.value,
                    "low": difference.interval.low,
                    "high": difference.interval.high,
                    "resamples": report.resamples,
                    "p": difference.p,
                    "examples": run.results[task].examples,
                    "data": run.results[task].predictions.data,
                })  # fmt: skip
    return csv_lines(CSV_NAMES, lines)
