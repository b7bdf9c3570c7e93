"""One description of a table, shown on a page (macros.html), in a terminal or as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.table import Table as RichTable
from rich.text import Text

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
