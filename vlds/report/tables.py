"""Which tables a report has, and what is in their cells."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from io import StringIO
from typing import Literal, NamedTuple

from rich.table import Table as RichTable
from rich.text import Text

from vlds.report.numbers import Interval, bytes_text, difference_text, interval_text, score_text
from vlds.report.read import Scores, TaskScores
from vlds.report.report import Report, RunReport, mean_text, seed_groups, size_facts, speed_text
from vlds.report.scores import FREQUENT, Difference
from vlds.runtime.terminal import visible
from vlds.tasks.metrics.plain_scores import split

# One description of a table, shown on a page (macros.html), in a terminal or as Markdown.


@dataclass(frozen=True)
class Cell:
    """What a cell shows."""

    text: str
    look: str = "number"
    """Classes of the style sheet."""
    interval: str = ""
    notes: Sequence[str] = ()
    """Small lines below."""
    bar: float | None = None
    """Length of a bar below, 0..1."""
    shade: float | None = None
    """How dark the ground is, 0..1."""


@dataclass(frozen=True)
class Row:
    """A line of a table."""

    head: str
    cells: Sequence[Cell] = ()
    notes: Sequence[str] = ()
    """Small lines below the head."""
    is_group: bool = False
    """Whether it is the title of the rows that follow."""


@dataclass(frozen=True)
class Table:
    """A table, wherever it is shown; further lines of a head are notes."""

    heads: Sequence[str]
    rows: Sequence[Row]
    numbers_from: int = 1
    """The first column that stands to the right, as numbers do."""


def terminal_table(table: Table, caption: str = "") -> RichTable:
    """The table for a terminal, with lines of text below it; intervals are left out."""
    shown = RichTable(box=None, pad_edge=False, header_style="bold", caption_justify="left")
    shown.caption = Text(visible(caption)) if caption else None
    for column, head in enumerate(table.heads):
        justify: Literal["left", "right"] = "right" if column >= table.numbers_from else "left"
        whole = 0 < column < table.numbers_from  # names of scores, which are short
        shown.add_column(Text(visible(head)), justify=justify, overflow="fold", no_wrap=whole)
    for row in table.rows:
        texts = [(row.head, row.notes), *((cell.text, cell.notes) for cell in row.cells)]
        shown.add_row(*(Text("\n".join(map(visible, (t, *notes)))) for t, notes in texts))
    return shown


def markdown_table(table: Table) -> str:
    """The table in Markdown; intervals and notes stand behind their numbers."""
    rule = ["---:" if n >= table.numbers_from else "---" for n in range(len(table.heads))]
    lines = [list(map(markdown_text, table.heads)), rule]
    for row in table.rows:
        head = " ".join([row.head, *(f"({note})" for note in row.notes)])
        lines.append([markdown_text(text) for text in (head, *map(whole_text, row.cells))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def whole_text(cell: Cell) -> str:
    """All texts of a cell in one line."""
    return " ".join(filter(None, [cell.text, cell.interval, *(f"({n})" for n in cell.notes)]))


def markdown_text(text: str) -> str:
    """Text that stays within its cell and is not markup."""
    line = " ".join(visible(text).split())
    for sign in "\\`*|<":
        line = line.replace(sign, f"\\{sign}")
    # Markdown takes _ for emphasis only at the edge of a word, and & only before a sign's name.
    line = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|&(?=#?\w+;)", r"\\\g<0>", line)
    return line.replace("](", "]\\(")  # a link; brackets alone are intervals


def summary_table(scores: Scores) -> Table:
    """Headline scores for the terminal: a row a task, a column a model."""
    rows = []
    for name, task in scores.tasks.items():
        for metric in task.metrics[:1]:
            values = [task.by_column.get(label, {}).get(metric) for label in scores.columns]
            count = "" if task.examples is None else f"{task.examples:,}"
            rows.append(
                Row(name, [Cell(text) for text in (metric, count, *map(score_text, values))])
            )
    return Table(["task", "score", "examples", *scores.columns], rows, numbers_from=2)


def score_table(run: RunReport) -> Table:
    """Headline scores for the page; the best of each row is bold and underlined, the run's own is
    the first, where a phone shows it too, with its interval."""
    rows = []
    columns = own_first(run.scores)
    for name, task in run.scores.tasks.items():
        notes = [task.data_text] if task.data_text else []
        for metric in task.metrics[:1]:
            result = run.result(name, metric)
            intervals = {columns[0]: result.interval if result else None}
            cells = score_cells(task, metric, columns, intervals)
            rows.append(Row(name, cells, [f"{metric}{direction(task, metric)}", *notes]))
    return Table(["task", *columns], rows)


def own_first(scores: Scores) -> list[str]:
    """The columns on the page of one run."""
    return [*scores.columns[-1:], *scores.columns[:-1]]


def direction(task: TaskScores, metric: str) -> str:
    """A remark where a lower score is better, which readers do not expect."""
    return " (lower is better)" if task.is_lower_better(metric) else ""


def score_cells(
    task: TaskScores,
    metric: str,
    columns: Sequence[str],
    intervals: Mapping[str, Interval | None] | None = None,
) -> list[Cell]:
    """One cell a column. All bars of a row have one scale, up to 1 or to the largest score."""
    values = {label: task.by_column.get(label, {}).get(metric) for label in columns}
    best = task.best(metric, values.values())
    known = [value for value in values.values() if value is not None]
    whole, has_bars = max([1.0, *known]), min(known, default=0.0) >= 0
    return [
        Cell(
            score_text(value),
            score_look(value, best),
            bracket((intervals or {}).get(label)),
            bar=value / whole if value is not None and has_bars else None,
        )
        for label, value in values.items()
    ]


def score_look(value: float | None, best: float | None) -> str:
    """CSS classes of a score: the best of a row is marked."""
    return "number best" if value is not None and value == best else "number"


def bracket(interval: Interval | None) -> str:
    """The text of an interval; "" if there is none."""
    return interval_text(interval) if interval else ""


def fact_table(run: RunReport) -> Table:
    """A run's facts, size and speed."""
    facts = {**run.facts, **size_facts(run.scores)}
    return Table([], [Row(what, [Cell(value, "")]) for what, value in facts.items()])


def comparison_table(report: Report) -> Table:
    """The page's table of runs, below the most frequent answer: scores with intervals, share,
    bytes, speed; then means over the seeds of what is otherwise the same run."""
    rows = []
    if frequent := frequent_cells(report):
        rows.append(Row(FREQUENT, [*frequent, *NO_FACTS]))
    for name, run in report.runs.items():
        method = "; ".join(filter(None, [run.facts.get("method"), run.stopped]))
        cells = [*headline_cells(report, run), *fact_cells(report, run)]
        rows.append(Row(name, cells, [method] if method else []))
    for names in seed_groups(report):
        runs = [report.runs[name] for name in names]
        means = [mean_text([run.score(*headline) for run in runs]) for headline in report.headlines]
        head = f"mean of {len(names)} seeds"
        rows.append(Row(head, [*map(Cell, means), *NO_FACTS], [", ".join(names)]))
    facts = ["trains", "bytes per rank", "examples a second"]
    return Table(["run", *headline_heads(report), *facts], rows)


def paper_table(report: Report) -> Table:
    """The table of runs to paste elsewhere: method and facts first, then scores."""
    rows = []
    if frequent := frequent_cells(report):
        rows.append(Row(FREQUENT, [Cell(""), *NO_FACTS, *frequent]))
    for name, run in report.runs.items():
        method = Cell(run.facts.get("method", ""))
        cells = [method, *fact_cells(report, run), *headline_cells(report, run)]
        rows.append(Row(name, cells, [run.stopped] if run.stopped else []))
    heads = ["run", "method", "trains", "bytes per rank", "examples/s"]
    return Table([*heads, *short_heads(report)], rows, numbers_from=2)


NO_FACTS = [Cell("")] * 3


def fact_cells(report: Report, run: RunReport) -> list[Cell]:
    """What trains, bytes and speed; "" where they are not known. Bytes say over which ranks they
    are divided, where the runs differ in that."""
    scores, partition = run.scores, run.inputs.partition
    known = {other.inputs.partition for other in report.runs.values()} - {""}
    trainable, memory = scores.trainable, scores.bytes_per_rank
    speed = scores.samples_per_second.get("training")
    return [
        Cell(f"{trainable['percent']:.2f} %" if trainable else ""),
        Cell(
            bytes_text(sum(memory.values())) if memory else "",
            notes=[partition] if memory and partition and len(known) > 1 else [],
        ),
        Cell("" if speed is None else speed_text(speed)),
    ]


def frequent_cells(report: Report) -> list[Cell]:
    """The scores of giving one answer to everything; empty where none is known."""
    scores = report.frequent_scores()
    known = any(value is not None for value in scores)
    return [Cell(score_text(value)) for value in scores] if known else []


def headline_cells(report: Report, run: RunReport) -> list[Cell]:
    """A run's headline scores among those of the other runs."""
    cells = []
    for task, metric in report.headlines:
        value, result = run.score(task, metric), run.result(task, metric)
        others = [other.score(task, metric) for other in report.runs.values()]
        best = report.merged_task(task).best(metric, others)
        interval = bracket(result.interval if result else None)
        cells.append(Cell(score_text(value), score_look(value, best), interval))
    return cells


def difference_table(report: Report, heads: Sequence[str]) -> Table:
    """Each run less the first, the same examples drawn for both; without rows where none can be
    compared."""
    rows = [
        Row(name, list(map(difference_cell, difference)))
        for name, difference in report.differences.items()
    ]
    return Table(heads, rows)


def difference_cell(difference: Difference | str) -> Cell:
    """A difference with its interval, in bold where that does not hold 0; or why there is none."""
    if isinstance(difference, str):
        return Cell("-", notes=[difference])
    sure = difference.interval.low > 0 or difference.interval.high < 0
    look = "number sure" if sure else "number"
    return Cell(difference_text(difference.value), look, bracket(difference.interval))


def headline_heads(report: Report) -> list[str]:
    """Heads of the page's columns of scores: task, and below it the score and its data."""
    data = report.data_texts
    return [
        "\n".join(filter(None, [task, metric, data.get(task)])) for task, metric in report.headlines
    ]


def short_heads(report: Report) -> list[str]:
    """The same in one line, without the data."""
    return [f"{task} {metric}" for task, metric in report.headlines]


class Fold(NamedTuple):
    """A table that is folded behind a line."""

    summary: str
    table: Table


def folded_details(scores: Scores, columns: Sequence[str]) -> list[Fold]:
    """Each task's scores; a task with a single score has no more to show."""
    return [
        Fold(summary(name, task), detail_table(task, columns))
        for name, task in scores.tasks.items()
        if len(task.metrics) > 1
    ]


def summary(name: str, task: TaskScores) -> str:
    """The line that a table is folded behind."""
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


# The report as tidy rows (CSV): one number a row, with all that tells what it is.


@dataclass(frozen=True, kw_only=True)
class TidyRow:
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
    names = [known.name for known in fields(TidyRow)]
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([getattr(row, name) for name in names] for row in rows(report))
    return text.getvalue()


def rows(report: Report) -> Iterator[TidyRow]:
    """Facts and scores of each run, then differences."""
    for name, run in report.runs.items():
        yield from fact_rows(name, run)
        yield from score_rows(name, run, report.resamples)
    yield from difference_rows(report)


def fact_rows(name: str, run: RunReport) -> Iterator[TidyRow]:
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
        yield TidyRow(run=name, method=method_of(run), name=what, value=value)


def score_rows(name: str, run: RunReport, resamples: int) -> Iterator[TidyRow]:
    """All scores, parts included; the headline of each task with its interval."""
    columns = run.scores.columns
    for task, entry in run.scores.tasks.items():
        for column in columns:
            result = run.result(task, entry.metrics[0]) if column == columns[-1] else None
            for metric, value in entry.by_column.get(column, {}).items():
                interval = result.interval if result and metric == result.headline else None
                yield TidyRow(
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


def difference_rows(report: Report) -> Iterator[TidyRow]:
    """Each further run less the first, where they can be compared."""
    for name, differences in report.differences.items():
        run = report.runs[name]
        for (task, metric), difference in zip(report.headlines, differences, strict=True):
            if isinstance(difference, Difference):
                yield TidyRow(
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
