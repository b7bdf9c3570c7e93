"""A table, the texts of its numbers, and how it is written: for a terminal, as Markdown, as LaTeX
and as CSV.

`vlds report`, `vlds compare`, `vlds sweep` and `vlds prove` all describe their tables with the
classes here; vlds/runtime/templates/macros.html draws them on a page.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from typing import Literal

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from vlds.report.numbers import Interval
from vlds.runtime.terminal import visible

UNBOUNDED = 10_000
"""Characters of a line that holds any table."""
BEST = "number best"
"""Look of the best number of a column."""
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
class TableRow:
    """A line of a table."""

    head: str
    cells: Sequence[Cell] = ()
    notes: Sequence[str] = ()
    """Small lines below the head."""
    is_group: bool = False
    """True for the title of the rows that follow."""


@dataclass(frozen=True)
class Table:
    """A table, wherever it is shown."""

    heads: Sequence[str]
    """One for each column, including that of the rows' heads; further lines of a head are notes."""
    rows: Sequence[TableRow]
    numbers_from: int = 1
    """The first column that is aligned to the right, as numbers are."""


def score_text(value: float | None) -> str:
    """Three decimals; a dash where there is no score."""
    return "-" if value is None else f"{value:.3f}"


def interval_text(interval: Interval | None) -> str:
    """Both ends in brackets; "" where there is no interval."""
    return "" if interval is None else f"[{interval.low:.3f}, {interval.high:.3f}]"


def p_text(p: float) -> str:
    """A p-value; very small ones depend on what was drawn."""
    return f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"


def speed_text(speed: float) -> str:
    """Examples a second: whole ones where there are ten."""
    return f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}"


def terminal_table(table: Table, caption: str = "") -> RichTable:
    """The table for a terminal, with lines of text below it; intervals are left out."""
    # Texts, because rich would take brackets in plain strings for markup.
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


def terminal_tables(
    table: Table, groups: Sequence[Sequence[int]], console: Console
) -> list[RichTable]:
    """The table; where the console is too narrow, tables of these groups of columns, each as wide
    as the console allows and with the heads of the rows."""

    def fits(shown: RichTable) -> bool:
        # rich would shrink the columns to the console's width, so it measures on an endless line.
        options = console.options.update(width=UNBOUNDED)
        return Measurement.get(console, options, shown).maximum <= console.width

    if fits(whole := terminal_table(table)):
        return [whole]
    # Put the words of a head below each other, so that more columns fit.
    heads = [head if "\n" in head else head.replace(" ", "\n") for head in table.heads]

    def part(columns: Sequence[int]) -> RichTable:
        # Column 0 holds the heads of the rows, which are not among their cells.
        rows = [replace(row, cells=[row.cells[at - 1] for at in columns]) for row in table.rows]
        return terminal_table(replace(table, heads=[heads[at] for at in (0, *columns)], rows=rows))

    # Greedy: a column joins the last part while that fits, else it begins the next one. A column
    # that is too wide by itself has a part alone, and its cells are folded.
    parts: list[list[int]] = []
    for group in groups:
        parts.append([])
        for column in group:
            if parts[-1] and not fits(part([*parts[-1], column])):
                parts.append([])
            parts[-1].append(column)
    return [part(columns) for columns in parts if columns]


def markdown_table(table: Table) -> str:
    """The table in Markdown; intervals and notes stand behind their numbers."""
    rule = ["---:" if n >= table.numbers_from else "---" for n in range(len(table.heads))]
    lines = [list(map(markdown_text, table.heads)), rule]
    for row in table.rows:
        texts = [(row.head, "", row.notes), *((c.text, c.interval, c.notes) for c in row.cells)]
        cells = [
            [text, interval, *(f"({note})" for note in notes)] for text, interval, notes in texts
        ]
        lines.append([markdown_text(" ".join(filter(None, cell))) for cell in cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown_text(text: str) -> str:
    """Text that stays within its cell and is not markup."""
    line = " ".join(visible(text).split())
    for sign in "\\`*|<":
        line = line.replace(sign, f"\\{sign}")
    # Markdown takes _ for emphasis only at the edge of a word, and & only before a sign's name.
    line = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|&(?=#?\w+;)", r"\\\g<0>", line)
    return line.replace("](", "]\\(")  # a link; brackets alone are intervals


def latex_table(table: Table, notes: Sequence[str]) -> str:
    """The table for LaTeX's booktabs, the best numbers bold; the notes are comments below it.
    Intervals are left out."""

    def one_line(text: str) -> str:
        return " ".join(visible(text).split())  # the end of a line would end a comment

    def escaped(text: str) -> str:
        return "".join(LATEX_SIGNS.get(sign, sign) for sign in one_line(text))

    lines = [
        "% needs \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{l{'r' * (len(table.heads) - 1)}}}",
        "\\toprule",
        " & ".join(map(escaped, table.heads)) + r" \\",
        "\\midrule",
    ]
    for row in table.rows:
        cells = [escaped(row.head)]
        for cell in row.cells:
            text = escaped(cell.text)
            text = f"\\textbf{{{text}}}" if cell.look == BEST else text
            cells.append(" ".join([text, *map(escaped, cell.notes)]))
        lines.append(" & ".join(cells) + r" \\")
    lines += ["\\bottomrule", "\\end{tabular}", *(f"% {one_line(note)}" for note in notes)]
    return "\n".join(lines) + "\n"


def csv_lines(names: Sequence[str], lines: Iterable[Mapping[str, object]]) -> str:
    """Lines of values, by these names of columns, under a line of the names; a value that is
    missing or None is empty. Errors: ValueError for a value of another name."""
    text = StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
