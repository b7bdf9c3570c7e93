"""The table of `vlds compare` as text: for a terminal, as Markdown, HTML, CSV and LaTeX."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from io import StringIO

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from vlds.metrics.caption_scores import CIDERS
from vlds.report.compute.compared_columns import MEMORY
from vlds.report.compute.comparison import Comparison
from vlds.report.render.comparison import (
    COSTS,
    PUBLISHED,
    comparison_table,
    has_published,
    notes,
)
from vlds.report.render.comparison_page import html
from vlds.report.render.table import Cell, Table, markdown_table, markdown_text, terminal_table
from vlds.runtime.shown import visible
from vlds.runtime.terminal import open_console

UNBOUNDED = 10_000
"""Characters of a line that holds any table."""
BRACKETS = "(65.9): a published value."
LATEX_SIGNS = {sign: f"\\{sign}" for sign in "&%$#_{}"} | {
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "|": "\\textbar{}",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
    "\u00b1": "$\\pm$",
}
"""Sign -> how LaTeX writes it."""


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
    console = open_console()
    table = in_brackets(comparison_table(comparison))
    heads = [head if head.startswith("time") else head.split("\n")[0] for head in table.heads]
    table = replace(table, heads=heads)
    lines = notes_without_intervals(comparison)
    whole = terminal_table(table)
    parts = [whole]
    if width_of(whole, console) > console.width:
        last = heads.index(comparison.values[-1])
        scores = range(last + 1 - len(comparison.values), last + 1)
        costs = [column for column in range(1, len(heads)) if column not in scores]
        parts = [part for some in (scores, costs) for part in fitting(table, some, console)]
    with console.capture() as captured:
        for part in parts:
            console.print(part)
            console.print()
        console.print(Text("\n".join(map(visible, lines))))
    return captured.get()


def width_of(table: RichTable, console: Console) -> int:
    """Characters of a line of the table."""
    return Measurement.get(console, console.options.update(width=UNBOUNDED), table).maximum


def fitting(table: Table, columns: Sequence[int], console: Console) -> list[RichTable]:
    """Tables of these columns, in order, each as wide as the terminal allows; the words of a head
    stand below each other."""
    heads = [head if "\n" in head else head.replace(" ", "\n") for head in table.heads]
    table = replace(table, heads=heads)
    parts: list[list[int]] = []
    for column in columns:
        longer = [*parts[-1], column] if parts else []
        shown = terminal_table(with_columns(table, longer)) if longer else None
        if shown is not None and width_of(shown, console) <= console.width:
            parts[-1] = longer
        else:
            parts.append([column])
    return [terminal_table(with_columns(table, part)) for part in parts]


def with_columns(table: Table, columns: Sequence[int]) -> Table:
    """Some columns of a table, beside the names of its rows."""
    rows = [replace(row, cells=[row.cells[column - 1] for column in columns]) for row in table.rows]
    return replace(table, heads=[table.heads[column] for column in (0, *columns)], rows=rows)


def markdown(comparison: Comparison) -> str:
    """To paste into a repository or an issue."""
    table = comparison_table(comparison)
    return "\n\n".join([markdown_table(table), *map(markdown_text, notes(comparison))]) + "\n"


def csv_rows(comparison: Comparison) -> str:
    """One number a row, unrounded."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        (
            "row", "name", "metric", "unit", "runs", "mean", "deviation", "low", "high",
            "published", "best", "partition",
        )
    )  # fmt: skip
    for row in comparison.rows:
        for name in (*comparison.costs, *comparison.values):
            number = row.numbers[name]
            interval = number.interval
            is_cider = comparison.metrics.get(name) in CIDERS
            unit = "times 100" if is_cider else "percent"
            unit = COSTS[name].unit if name in COSTS else unit
            is_best = name in comparison.values and comparison.best(name) is row
            writer.writerow((
                row.name, name, comparison.metrics.get(name), unit, len(number.values),
                number.mean, number.deviation, interval and interval.low,
                interval and interval.high, number.published, "best" if is_best else None,
                row.partition if name == MEMORY else None,
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
    lines += [f"% {one_line(note)}" for note in notes_without_intervals(comparison)]
    return "\n".join(lines) + "\n"


def latex_cell(cell: Cell) -> str:
    """A cell with its published value."""
    text = latex_text(cell.text)
    text = f"\\textbf{{{text}}}" if "best" in cell.look else text
    return " ".join([text, *map(latex_text, cell.notes)])


def latex_text(text: str) -> str:
    """Text without markup."""
    return "".join(LATEX_SIGNS.get(sign, sign) for sign in one_line(text))


def one_line(text: str) -> str:
    """Text without ends of lines, which would end a comment."""
    return " ".join(visible(text).split())


def notes_without_intervals(comparison: Comparison) -> list[str]:
    """The notes on a table whose brackets hold published values."""
    lines = notes(comparison, has_intervals=False)
    return [*lines, BRACKETS] if has_published(comparison) else lines


FORMATS: Mapping[str, Callable[[Comparison], str]] = {
    "terminal": terminal_text,
    "md": markdown,
    "html": html,
    "csv": csv_rows,
    "tex": latex,
}
"""Format -> what makes its text; but for the terminal's, it is the suffix of the file."""
