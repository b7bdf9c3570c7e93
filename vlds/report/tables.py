"""Scores and facts as tables: for the page and for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from rich.table import Table

from vlds.report.inputs import Scores, TaskScores
from vlds.report.numbers import bytes_text, score_text


def summary_table(scores: Scores) -> Table:
    """Headline scores for the terminal: a row a task, a column a model."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("task")
    table.add_column("score")
    table.add_column("examples", justify="right")
    for label in scores.columns:
        table.add_column(label, justify="right", overflow="fold")
    for name, task in scores.tasks.items():
        for metric in task.metrics[:1]:
            values = [task.by_column.get(label, {}).get(metric) for label in scores.columns]
            count = "" if task.examples is None else f"{task.examples:,}"
            table.add_row(name, metric, count, *map(score_text, values))
    return table


def score_table(scores: Scores) -> str:
    """Headline scores for the page; the best of each row is bold and underlined."""
    rows = []
    for name, task in scores.tasks.items():
        count = "" if task.examples is None else f"<br>{task.examples:,} examples"
        for metric in task.metrics[:1]:
            note = f"<small>{escape(metric)}{count}</small>"
            head = f'<th scope="row">{escape(name)}{note}</th>'
            rows.append([head, *score_cells(task, metric, scores.columns)])
    return table(["task", *scores.columns], rows, numbers_from=1)


def detail_table(scores: Scores) -> str:
    """All scores of all tasks, parts included."""
    heads = ["task", "score", *scores.columns]
    rows = [
        [
            f'<th scope="row">{escape(name)}</th><td>{escape(metric.replace("/", " / "))}</td>',
            *score_cells(task, metric, scores.columns),
        ]
        for name, task in scores.tasks.items()
        for metric in task.metrics
    ]
    return table(heads, rows, numbers_from=2)


def score_cells(task: TaskScores, metric: str, columns: Sequence[str]) -> list[str]:
    """One cell a column, with a bar under scores that lie in 0..1."""
    values = [task.by_column.get(label, {}).get(metric) for label in columns]
    known = [value for value in values if value is not None]
    cells = []
    for value in values:
        text = score_text(value)
        best = len(known) > 1 and value is not None and value == max(known)
        bar = (
            f'<i class="bar" style="width:{100 * value:.1f}%"></i>'
            if value is not None and 0 <= value <= 1
            else ""
        )
        cells.append(f'<td class="number{" best" if best else ""}">{text}{bar}</td>')
    return cells


def fact_table(scores: Scores) -> str:
    """Trainable share, bytes per rank, speed."""
    rows = [
        [f'<th scope="row">{escape(what)}</th><td class="number">{escape(value)}</td>']
        for what, value in fact_rows(scores)
    ]
    return table([], rows)


def fact_rows(scores: Scores) -> list[tuple[str, str]]:
    """What there is to say about size and speed."""
    rows = []
    if counts := scores.trainable:
        share = f"{counts['trainable']:,.0f} of {counts['total']:,.0f} ({counts['percent']:.2f} %)"
        rows.append(("weights that train", share))
    for what, count in scores.bytes_per_rank.items():
        rows.append((f"{what}, bytes per rank", bytes_text(count)))
    for what, speed in scores.samples_per_second.items():
        text = f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}"
        rows.append((f"{what}, examples a second", text))
    return rows


def comparison_table(runs: Mapping[str, Scores]) -> str:
    """Runs beside each other: the last column of each one's scores, share and speed."""
    tasks = list(dict.fromkeys(task for scores in runs.values() for task in scores.tasks))
    rows = []
    for name, scores in runs.items():
        values = [last_headline(scores, task) for task in tasks]
        percent = scores.trainable.get("percent")
        held = sum(scores.bytes_per_rank.values())
        cells = [
            f"<td>{'' if percent is None else f'{percent:.2f} %'}</td>",
            f"<td>{bytes_text(held) if held else ''}</td>",
            *(f'<td class="number">{score_text(value)}</td>' for value in values),
        ]
        rows.append([f'<th scope="row">{escape(name)}</th>', *cells])
    return table(["run", "trains", "bytes per rank", *tasks], rows, numbers_from=3)


def last_headline(scores: Scores, name: str) -> float | None:
    """The headline score of the last model in the table."""
    task = scores.tasks.get(name)
    if task is None or not task.metrics:
        return None
    return task.by_column.get(scores.columns[-1], {}).get(task.metrics[0])


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers_from: int = 99) -> str:
    """Rows of ready cells under escaped heads, in a box that scrolls sideways on its own."""
    if not rows:
        return ""
    head = "".join(
        f'<th scope="col"{" class=number" if place >= numbers_from else ""}>{escape(text)}</th>'
        for place, text in enumerate(heads)
    )
    body = "".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    thead = f"<thead><tr>{head}</tr></thead>" if heads else ""
    return f'<div class="scroll"><table>{thead}<tbody>{body}</tbody></table></div>'
