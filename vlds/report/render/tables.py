"""Scores and facts as tables: for the page and for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table as TerminalTable
from rich.text import Text

from vlds.report.compute.baselines import FREQUENT
from vlds.report.compute.beside import frequent_scores, merged_task
from vlds.report.compute.collect import Report, RunReport
from vlds.report.compute.facts import held_text, share_text, size_facts, training_speed_text
from vlds.report.compute.results import Difference
from vlds.report.compute.seeds import mean_text, seed_groups
from vlds.report.numbers import Interval, difference_text, interval_text, score_text
from vlds.report.read.scores import Scores, TaskScores
from vlds.runtime.shown import visible


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
    """A table of the page; a head's second line is a note."""

    heads: Sequence[str]
    rows: Sequence[Row]
    numbers_from: int = 1
    """The first column whose head stands to the right, as numbers do."""


def summary_table(scores: Scores) -> TerminalTable:
    """Headline scores for the terminal: a row a task, a column a model."""
    data = [f"{name}: {task.data_name}" for name, task in scores.tasks.items() if task.data_name]
    table = TerminalTable(box=None, pad_edge=False, header_style="bold", caption_justify="left")
    table.caption = Text(visible(f"data: {', '.join(data)}")) if data else None
    table.add_column("task")
    table.add_column("score")
    table.add_column("examples", justify="right")
    for label in scores.columns:
        table.add_column(Text(visible(label)), justify="right", overflow="fold")
    for name, task in scores.tasks.items():
        for metric in task.metrics[:1]:
            values = [task.by_column.get(label, {}).get(metric) for label in scores.columns]
            count = "" if task.examples is None else f"{task.examples:,}"
            cells = [name, metric, count, *map(score_text, values)]
            table.add_row(*(Text(visible(cell)) for cell in cells))
    return table


def score_table(run: RunReport) -> Table:
    """Headline scores for the page; the best of each row is bold and underlined, the run's own has
    its interval."""
    rows = []
    columns = run.scores.columns
    for name, task in run.scores.tasks.items():
        notes = [task.data_text] if task.data_text else []
        for metric in task.metrics[:1]:
            result = run.result(name, metric)
            intervals = {columns[-1]: result.interval if result else None}
            cells = score_cells(task, metric, columns, intervals)
            rows.append(Row(name, cells, [f"{metric}{direction(task, metric)}", *notes]))
    return Table(["task", *columns], rows)


def direction(task: TaskScores, metric: str) -> str:
    """What readers would not expect of a score."""
    return " (lower is better)" if task.is_lower_better(metric) else ""


def score_cells(
    task: TaskScores,
    metric: str,
    columns: Sequence[str],
    intervals: Mapping[str, Interval | None] | None = None,
) -> list[Cell]:
    """One cell a column, with a bar under scores that lie in 0..1."""
    values = {label: task.by_column.get(label, {}).get(metric) for label in columns}
    best = task.best(metric, values.values())
    return [
        Cell(
            score_text(value),
            score_look(value, best),
            bracket((intervals or {}).get(label)),
            bar=value if value is not None and 0 <= value <= 1 else None,
        )
        for label, value in values.items()
    ]


def score_look(value: float | None, best: float | None) -> str:
    """The best of a row is marked."""
    return "number best" if value is not None and value == best else "number"


def bracket(interval: Interval | None) -> str:
    """An interval below its score; nothing where there is none."""
    return interval_text(interval) if interval else ""


def fact_table(run: RunReport) -> Table:
    """What, and how much of it."""
    facts = {**run.facts, **size_facts(run.scores)}
    return Table([], [Row(what, [Cell(value, "")]) for what, value in facts.items()])


def comparison_table(report: Report) -> Table:
    """Runs with their methods beside each other, below the most frequent answer: scores with
    intervals, share, bytes, speed; then means over the seeds of what is otherwise the same run."""
    rows = baseline_rows(report)
    for name, run in report.runs.items():
        facts = (
            share_text(run.scores.trainable),
            held_text(run.scores.bytes_per_rank),
            training_speed_text(run.scores.samples_per_second),
        )
        told = "; ".join(filter(None, [run.facts.get("method"), run.stopped]))
        cells = [compared_cell(report, run, *headline) for headline in report.headlines]
        rows.append(Row(name, [*cells, *map(Cell, facts)], [told] if told else []))
    for names in seed_groups(report):
        runs = [report.runs[name] for name in names]
        cells = [
            Cell(mean_text([run.score(*headline) for run in runs])) for headline in report.headlines
        ]
        rows.append(
            Row(f"mean of {len(names)} seeds", [*cells, *[Cell("")] * 3], [", ".join(names)])
        )
    heads = ["run", *headline_heads(report), "trains", "bytes per rank", "examples a second"]
    return Table(heads, rows)


def baseline_rows(report: Report) -> list[Row]:
    """The scores of giving one answer to everything, where they are known."""
    found = frequent_scores(report)
    cells = [Cell(score_text(value)) for value in found]
    known = any(value is not None for value in found)
    return [Row(FREQUENT, [*cells, *[Cell("")] * 3])] if known else []


def compared_cell(report: Report, run: RunReport, task: str, metric: str) -> Cell:
    """A run's score among those of the other runs."""
    value, result = run.score(task, metric), run.result(task, metric)
    others = [other.score(task, metric) for other in report.runs.values()]
    best = merged_task(report, task).best(metric, others)
    return Cell(
        score_text(value), score_look(value, best), bracket(result.interval if result else None)
    )


def difference_table(report: Report) -> Table:
    """Each run less the first, the same examples drawn for both; without rows where none can be
    compared."""
    rows = [
        Row(name, list(map(difference_cell, found))) for name, found in report.differences.items()
    ]
    return Table(["run", *headline_heads(report)], rows)


def difference_cell(found: Difference | str) -> Cell:
    """A difference with its interval, in bold where that does not hold 0; or why there is none."""
    if isinstance(found, str):
        return Cell("-", notes=[found])
    sure = found.interval.low > 0 or found.interval.high < 0
    look = "number sure" if sure else "number"
    return Cell(difference_text(found.value), look, bracket(found.interval))


def headline_heads(report: Report) -> list[str]:
    """Heads of the columns of scores: task, and below it the score and its data."""
    data = report.data_texts
    return [
        "\n".join(filter(None, [task, metric, data.get(task)])) for task, metric in report.headlines
    ]
