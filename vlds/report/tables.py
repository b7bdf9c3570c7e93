"""Scores and facts as tables: for the page and for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text

from vlds.report.beside import merged_task
from vlds.report.bootstrap import Interval
from vlds.report.collect import Report, RunReport
from vlds.report.facts import held_text, share_text, training_speed_text
from vlds.report.numbers import difference_text, interval_text, score_text
from vlds.report.results import Difference
from vlds.report.scores import Scores, TaskScores
from vlds.runtime.shown import escape, visible


def summary_table(scores: Scores) -> Table:
    """Headline scores for the terminal: a row a task, a column a model."""
    data = [f"{name}: {task.data_name}" for name, task in scores.tasks.items() if task.data_name]
    table = Table(box=None, pad_edge=False, header_style="bold", caption_justify="left")
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


def score_table(run: RunReport) -> str:
    """Headline scores for the page; the best of each row is bold and underlined, the run's own has
    its interval."""
    rows = []
    columns = run.scores.columns
    for name, task in run.scores.tasks.items():
        data = f"<br>{escape(task.data_text)}" if task.data_text else ""
        for metric in task.metrics[:1]:
            note = f"<small>{escape(metric)}{direction(task, metric)}{data}</small>"
            result = run.result(name, metric)
            intervals = {columns[-1]: result.interval if result else None}
            head = f'<th scope="row">{escape(name)}{note}</th>'
            rows.append([head, *score_cells(task, metric, columns, intervals)])
    return table(["task", *columns], rows, numbers_from=1)


def direction(task: TaskScores, metric: str) -> str:
    """What readers would not expect of a score."""
    return " (lower is better)" if task.is_lower_better(metric) else ""


def score_cells(
    task: TaskScores,
    metric: str,
    columns: Sequence[str],
    intervals: Mapping[str, Interval | None] | None = None,
) -> list[str]:
    """One cell a column, with a bar under scores that lie in 0..1."""
    values = [task.by_column.get(label, {}).get(metric) for label in columns]
    leader = task.best(metric, values)
    cells = []
    for label, value in zip(columns, values, strict=True):
        best = value is not None and value == leader
        bar = (
            f'<i class="bar" style="width:{100 * value:.1f}%"></i>'
            if value is not None and 0 <= value <= 1
            else ""
        )
        text = f"<b>{score_text(value)}</b>{bracket((intervals or {}).get(label))}{bar}"
        cells.append(f'<td class="number{" best" if best else ""}">{text}</td>')
    return cells


def bracket(interval: Interval | None) -> str:
    """An interval below its score; nothing where there is none."""
    return f'<small class="interval">{interval_text(interval)}</small>' if interval else ""


def fact_table(facts: Mapping[str, str]) -> str:
    """What, and how much of it."""
    rows = [
        [f'<th scope="row">{escape(what)}</th><td>{escape(value)}</td>']
        for what, value in facts.items()
    ]
    return table([], rows)


def comparison_table(report: Report) -> str:
    """Runs with their methods beside each other: scores with intervals, share, bytes, speed."""
    rows = []
    for name, run in report.runs.items():
        facts = (
            share_text(run.scores.trainable),
            held_text(run.scores.bytes_per_rank),
            training_speed_text(run.scores.samples_per_second),
        )
        told = "; ".join(filter(None, [run.facts.get("method"), run.stopped]))
        method = f"<small>{escape(told)}</small>"
        cells = [
            *(compared_cell(report, run, *headline) for headline in report.headlines),
            *(f'<td class="number">{escape(text)}</td>' for text in facts),
        ]
        rows.append([f'<th scope="row">{escape(name)}{method}</th>', *cells])
    heads = ["run", *headline_heads(report), "trains", "bytes per rank", "examples a second"]
    return table(heads, rows, numbers_from=1)


def compared_cell(report: Report, run: RunReport, task: str, metric: str) -> str:
    """A run's score among those of the other runs."""
    value, result = run.score(task, metric), run.result(task, metric)
    others = [other.score(task, metric) for other in report.runs.values()]
    best = value is not None and value == merged_task(report, task).best(metric, others)
    text = f"<b>{score_text(value)}</b>{bracket(result.interval if result else None)}"
    return f'<td class="number{" best" if best else ""}">{text}</td>'


def difference_table(report: Report) -> str:
    """Each run less the first, the same examples drawn for both; "" where none can be compared."""
    rows = [
        [f'<th scope="row">{escape(name)}</th>', *map(difference_cell, found)]
        for name, found in report.differences.items()
    ]
    return table(["run", *headline_heads(report)], rows, numbers_from=1)


def difference_cell(found: Difference | str) -> str:
    """A difference with its interval, in bold where that does not hold 0; or why there is none."""
    if isinstance(found, str):
        return f'<td class="number">-<small>{escape(found)}</small></td>'
    sure = " sure" if found.interval.low > 0 or found.interval.high < 0 else ""
    text = f"<b>{difference_text(found.value)}</b>{bracket(found.interval)}"
    return f'<td class="number{sure}">{text}</td>'


def headline_heads(report: Report) -> list[str]:
    """Heads of the columns of scores: task, and below it the score and its data."""
    data = report.data_texts
    return [f"{task}\n{metric}\n{data.get(task, '')}" for task, metric in report.headlines]


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers_from: int = 99) -> str:
    """Rows of ready cells under heads, in a box that scrolls sideways on its own. A head's second
    line is a note."""
    if not rows:
        return ""
    head = "".join(
        f'<th scope="col"{" class=number" if place >= numbers_from else ""}>{noted(text)}</th>'
        for place, text in enumerate(heads)
    )
    body = "".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    thead = f"<thead><tr>{head}</tr></thead>" if heads else ""
    return f'<div class="scroll"><table>{thead}<tbody>{body}</tbody></table></div>'


def noted(text: str) -> str:
    """A head with its note."""
    first, *notes = text.rstrip("\n").split("\n")
    return escape(first) + "".join(f"<small>{escape(note)}</small>" for note in notes)
