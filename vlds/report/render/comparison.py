"""The table of `vlds compare`: for a terminal, as Markdown, HTML, CSV and LaTeX."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

from rich.console import Console

from vlds.report.compute.comparison import (
    AVERAGE,
    MEMORY,
    SPEED,
    STORED,
    TIME,
    TRAINS,
    ComparedRow,
    Comparison,
    Number,
)
from vlds.report.compute.facts import speed_text
from vlds.report.numbers import bytes_text
from vlds.report.render import charts
from vlds.report.render.charts import Bar, Chart, Spot, look, spot_chart
from vlds.report.render.table import Cell, Row, Table, markdown_table, terminal_table
from vlds.runtime.durations import duration_text
from vlds.runtime.templating import page

TEMPLATES = Path(__file__).with_name("templates")
PUBLISHED = "published "
BRACKETS = "(65.9): a published value."


@dataclass(frozen=True)
class Heading:
    """How a cost is shown."""

    title: str
    text: Callable[[float], str]
    unit: str


COSTS: Mapping[str, Heading] = {
    TRAINS: Heading("trains", lambda value: f"{value:.2f} %", "percent"),
    STORED: Heading("stores", bytes_text, "bytes"),
    MEMORY: Heading("peak memory", bytes_text, "bytes"),
    SPEED: Heading("samples/s", speed_text, "samples_per_second"),
    TIME: Heading("time to", duration_text, "seconds"),
}


def comparison_table(comparison: Comparison) -> Table:
    """What trains, then scores, then the other costs; the best of each score is marked."""
    order = [n for n in comparison.costs if n == TRAINS] + comparison.values
    order += [name for name in comparison.costs if name != TRAINS]
    rows = [
        Row(row.name, [cell(comparison, row, name) for name in order], [seeds_text(row)])
        for row in comparison.rows
    ]
    return Table(["", *(head(comparison, name) for name in order)], rows)


def head(comparison: Comparison, name: str) -> str:
    """The head of a column; a task's metric stands below it."""
    if name == TIME and comparison.target is not None:
        task, percent = comparison.target
        return f"{COSTS[TIME].title}\n{task} {percent:g}"
    if name in COSTS:
        return COSTS[name].title
    return "\n".join(filter(None, [name, comparison.metrics.get(name)]))


def seeds_text(row: ComparedRow) -> str:
    """How many runs a row is the mean of."""
    seeds = f"{row.wanted} seed{'s' * (row.wanted != 1)}"
    return seeds if len(row.runs) == row.wanted else f"{len(row.runs)} of {seeds}"


def cell(comparison: Comparison, row: ComparedRow, name: str) -> Cell:
    """A mean cost; or mean, deviation and interval of a score. With the published value."""
    number = row.numbers[name]
    if (heading := COSTS.get(name)) is not None:
        text = "-" if number.mean is None else heading.text(number.mean)
        return Cell(text, notes=published(number, heading.text))
    interval = number.interval
    is_best = number.mean is not None and number.mean == comparison.best(name)
    return Cell(
        score_text(number),
        "number best" if is_best else "number",
        f"[{interval.low:.1f}, {interval.high:.1f}]" if interval else "",
        published(number, lambda value: f"{value:.1f}"),
    )


def score_text(number: Number) -> str:
    """ "65.2 +/- 0.3"; without the deviation for one seed."""
    if number.mean is None:
        return "-"
    deviation = "" if number.deviation is None else f" \u00b1 {number.deviation:.1f}"
    return f"{number.mean:.1f}{deviation}"


def published(number: Number, text: Callable[[float], str]) -> list[str]:
    """A note with the published value, if there is one."""
    return [] if number.published is None else [f"{PUBLISHED}{text(number.published)}"]


def in_brackets(table: Table) -> Table:
    """The table with published values in brackets, to save room."""
    rows = [
        replace(
            row,
            cells=[
                replace(cell, notes=[f"({note.removeprefix(PUBLISHED)})" for note in cell.notes])
                for cell in row.cells
            ],
        )
        for row in table.rows
    ]
    return replace(table, rows=rows)


def notes(comparison: Comparison) -> list[str]:
    """What the numbers mean, and what is missing."""
    lines = ["Scores are percents: 100 times the score, also for CIDEr."]
    if AVERAGE in comparison.values:
        lines.append("The average is the mean of the columns before it.")
    if any(len(row.runs) > 1 for row in comparison.rows):
        lines.append(
            "\u00b1: standard deviation of the sample (n - 1) over the seeds. Brackets: 95 % "
            "confidence interval of the mean (Student's t)."
        )
    if TIME in comparison.costs:
        lines.append("Time: of training alone, until the first evaluation that reaches the score.")
    return [*lines, *comparison.notes]


def has_published(comparison: Comparison) -> bool:
    """True if a value was published."""
    numbers = [number for row in comparison.rows for number in row.numbers.values()]
    return any(number.published is not None for number in numbers)


def terminal_text(comparison: Comparison) -> str:
    """For a terminal, in its width."""
    console = Console()
    with console.capture() as captured:
        table = in_brackets(comparison_table(comparison))
        lines = [*notes(comparison), BRACKETS] if has_published(comparison) else notes(comparison)
        console.print(terminal_table(table, "\n".join(lines)))
    return captured.get()


def markdown(comparison: Comparison) -> str:
    """To paste into a repository or an issue."""
    table = comparison_table(comparison)
    return "\n\n".join([markdown_table(table), *notes(comparison)]) + "\n"


def csv_rows(comparison: Comparison) -> str:
    """One number a row, unrounded."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ("row", "name", "metric", "unit", "runs", "mean", "deviation", "low", "high", "published")
    )
    for row in comparison.rows:
        for name in (*comparison.costs, *comparison.values):
            number = row.numbers[name]
            interval = number.interval
            unit = COSTS[name].unit if name in COSTS else "percent"
            writer.writerow((
                row.name, name, comparison.metrics.get(name), unit, len(number.values),
                number.mean, number.deviation, interval and interval.low,
                interval and interval.high, number.published,
            ))  # fmt: skip
    return text.getvalue()


def latex(comparison: Comparison) -> str:
    """A table of booktabs; published values stand in brackets behind ours, the best is bold."""
    table = in_brackets(comparison_table(comparison))
    lines = [
        "% needs \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{l{'r' * (len(table.heads) - 1)}}}",
        "\\toprule",
        " & ".join(latex_text(text.replace("\n", " ")) for text in table.heads) + r" \\",
        "\\midrule",
    ]
    for row in table.rows:
        cells = [latex_text(row.head), *map(latex_cell, row.cells)]
        lines.append(" & ".join(cells) + r" \\")
    lines += ["\\bottomrule", "\\end{tabular}"]
    lines += [f"% {note}" for note in (*notes(comparison), BRACKETS)]
    return "\n".join(lines) + "\n"


def latex_cell(cell: Cell) -> str:
    """A cell with its published value."""
    text = latex_text(cell.text)
    text = f"\\textbf{{{text}}}" if "best" in cell.look else text
    return " ".join([text, *map(latex_text, cell.notes)])


def latex_text(text: str) -> str:
    """Text without markup."""
    escaped = text.replace("\\", "\\textbackslash{}")
    escaped = re.sub(r"([&%$#_{}])", r"\\\1", escaped).replace(
        "\\textbackslash\\{\\}", "\\textbackslash{}"
    )
    return (
        escaped.replace("\u00b1", "$\\pm$")
        .replace("~", "\\textasciitilde{}")
        .replace("^", "\\textasciicircum{}")
    )


def html(comparison: Comparison) -> str:
    """A page: the table, what each row costs and scores as a picture, and each score as bars."""
    return page(
        TEMPLATES / "compare.html",
        title=comparison.title,
        table=comparison_table(comparison),
        notes=notes(comparison),
        spots=cost_and_score(comparison),
        bars=[score_bars(comparison, name) for name in comparison.values],
        rows=[row.name for row in comparison.rows],
        published=has_published(comparison),
        frame=charts,
    )


def cost_and_score(comparison: Comparison) -> Chart | None:
    """Every row's average (or only score) over its trainable share, as in the paper's figure, and
    the published ones; None if fewer than two rows are known."""
    name = comparison.values[-1]
    spots = []
    for index, row in enumerate(comparison.rows):
        share, score = row.numbers[TRAINS], row.numbers[name]
        if share.mean and score.mean is not None:
            text = f"{row.name}: {score_text(score)}, trains {share.mean:.2f} %"
            spots.append(Spot(share.mean, score.mean, score.deviation or 0.0, look(index), text))
        if share.published and score.published is not None:
            text = f"{row.name}, published: {score.published:.1f}, trains {share.published:.2f} %"
            spots.append(Spot(share.published, score.published, 0.0, f"{look(index)} hollow", text))
    return spot_chart(name, spots, "% of the weights train") if len(spots) > 1 else None


def score_bars(comparison: Comparison, name: str) -> Chart:
    """A score of every row, as bars from 0."""
    means = {row.name: row.numbers[name].mean or 0.0 for row in comparison.rows}
    highest = max(map(abs, means.values())) or 1.0
    bars = [
        Bar(row.name, look(index), score_text(row.numbers[name]), abs(means[row.name]) / highest)
        for index, row in enumerate(comparison.rows)
    ]
    return Chart(name, bars=bars)


FORMATS: Mapping[str, Callable[[Comparison], str]] = {
    "terminal": terminal_text,
    "md": markdown,
    "html": html,
    "csv": csv_rows,
    "tex": latex,
}
"""Format -> what makes its text; but for the terminal's, it is the suffix of the file."""
