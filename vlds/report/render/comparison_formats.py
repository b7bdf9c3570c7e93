"""The table of `vlds compare` as text: for a terminal, as Markdown, HTML, CSV and LaTeX."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from io import StringIO

from rich.console import Console
from rich.measure import Measurement
from rich.text import Text

from vlds.report.compute.comparison import Comparison
from vlds.report.render.comparison import (
    COSTS,
    PUBLISHED,
    comparison_table,
    has_published,
    notes,
)
from vlds.report.render.comparison_page import html
from vlds.report.render.table import Cell, Table, markdown_table, terminal_table
from vlds.runtime.shown import visible

UNBOUNDED = 10_000
"""Characters of a line that holds any table."""
BRACKETS = "(65.9): a published value."


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


def terminal_text(comparison: Comparison) -> str:
    """For a terminal: one table if its width allows, else scores above costs."""
    console = Console()
    table = in_brackets(comparison_table(comparison))
    heads = [head if head.startswith("time") else head.split("\n")[0] for head in table.heads]
    table = replace(table, heads=heads)
    lines = [*notes(comparison), BRACKETS] if has_published(comparison) else notes(comparison)
    whole = terminal_table(table)
    parts = [whole]
    unbounded = console.options.update(width=UNBOUNDED)
    if Measurement.get(console, unbounded, whole).maximum > console.width:
        last = heads.index(comparison.values[-1])
        scores = range(last + 1 - len(comparison.values), last + 1)
        costs = [column for column in range(1, len(heads)) if column not in scores]
        parts = [terminal_table(with_columns(table, some)) for some in (scores, costs) if some]
    with console.capture() as captured:
        for part in parts:
            console.print(part)
            console.print()
        console.print(Text("\n".join(map(visible, lines))))
    return captured.get()


def with_columns(table: Table, columns: Sequence[int]) -> Table:
    """Some columns of a table, beside the names of its rows."""
    rows = [replace(row, cells=[row.cells[column - 1] for column in columns]) for row in table.rows]
    return replace(table, heads=[table.heads[column] for column in (0, *columns)], rows=rows)


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


FORMATS: Mapping[str, Callable[[Comparison], str]] = {
    "terminal": terminal_text,
    "md": markdown,
    "html": html,
    "csv": csv_rows,
    "tex": latex,
}
"""Format -> what makes its text; but for the terminal's, it is the suffix of the file."""
