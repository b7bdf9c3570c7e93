"""Tables as spreadsheets and people write them: comma, semicolon, tab or bar between the cells.

Spreadsheets add a byte-order mark or a first line `sep=;`, end lines with separators and write
empty rows; none of this is data. A row is known by the line on which it begins, which is not its
number if a quoted cell holds a line break.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TextIO

from ..json_rows import open_text
from ..packing.source import in_lines

TABLES = (".csv", ".tsv")
SEPARATORS = (",", ";", "\t", "|")
"""In countries with a decimal comma, spreadsheets write a semicolon."""
NAMES = {"\t": "tab"}
"""Names of invisible separators."""
EXCEL_HINT = re.compile(r"sep=(.)\s*", re.IGNORECASE)
"""First line by which a table tells Excel its separator."""


class RowLines:
    """The lines of a file; remembers those of the row that is being read."""

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.end = 0
        """Number of the newest line, from 1."""
        self.row: list[str] = []

    def __iter__(self) -> Iterator[str]:
        for line in self.file:
            self.end += 1
            self.row.append(line)
            yield line

    @property
    def begin(self) -> int:
        """Line on which the row begins."""
        return self.end - len(self.row) + 1  # a row of lines 7 to 9: 9 - 3 + 1


def read_table(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Line and cells, by the column names, of each row that is not empty.

    Errors: ValueError that names the line.
    """
    # csv needs the line ends as they are, because a quoted cell may hold some.
    with open_text(path, newline="") as file:
        lines = RowLines(file)
        separator = _skip_to_head(path, lines)
        # skipinitialspace: people write a blank behind the comma, and then a quote.
        reader = csv.reader(iter(lines), delimiter=separator, strict=True, skipinitialspace=True)
        head: list[str] = []
        rows, faults = [], list[tuple[str, str]]()
        while True:
            # csv reads as many lines as the row has; remember them for its messages.
            lines.row.clear()
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise ValueError(f"{path}, {_csv_fault(lines, separator, head, error)}") from error
            if cells is None:
                break
            # Spreadsheets write rows of separators below the data.
            if not any(cell.strip() for cell in cells):
                continue
            if not head:
                head = _trimmed([cell.strip() for cell in cells], 1)
                repeated = [name for name, count in Counter(head).items() if name and count > 1]
                if repeated:
                    raise ValueError(
                        f"{path}, line {lines.begin}: two columns are called {repeated[0]!r}; "
                        "rename one"
                    )
                continue
            # Never shorter than the head: a row's own last cells may be empty.
            cells = _trimmed(cells, len(head))
            if len(cells) != len(head):
                fault = _count_fault(cells, head, lines, separator)
                faults.append((f"line {lines.begin}", fault))
                continue
            rows.append((lines.begin, dict(zip(head, cells, strict=True))))
    # All rows are read first, so that the message can name all faulty ones.
    if faults:
        raise ValueError(in_lines(path, faults))
    return rows


def _skip_to_head(path: Path, lines: RowLines) -> str:
    """The separator: named by the file, or the one with the most columns in the head line."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    start = lines.file.tell()
    # readline, because iterating a text file forbids tell().
    for line in iter(lines.file.readline, ""):
        if hint := EXCEL_HINT.fullmatch(line):
            lines.end += 1
            return hint[1]
        if line.strip():
            lines.file.seek(start)
            # Every second part of the line is inside quotes, where separators are text.
            unquoted = "".join(line.split('"')[::2])
            return max(SEPARATORS, key=unquoted.count)
        lines.end += 1
        start = lines.file.tell()
    return SEPARATORS[0]


def _trimmed(cells: list[str], least: int) -> list[str]:
    """Cells without the empty last ones, which separators at the end of a line make."""
    while len(cells) > least and not cells[-1].strip():
        cells = cells[:-1]
    return cells


def _count_fault(cells: Sequence[str], head: Sequence[str], lines: RowLines, separator: str) -> str:
    """What is wrong with a row that has too many or too few cells."""
    count = f"{len(cells)} cell{'s' if len(cells) > 1 else ''}"
    fault = f"{count}, but the head line has {len(head)} ({', '.join(head)}); "
    if lines.end > lines.begin:
        return (
            f"{fault}a quoted cell continues to line {lines.end}: should its quote close earlier?"
        )
    if len(cells) < len(head):
        return f"{fault}add the missing ones"
    sign = NAMES.get(separator, repr(separator))
    return f"{fault}put cells that hold a {sign} in quotes"


def _csv_fault(lines: RowLines, separator: str, head: Sequence[str], error: csv.Error) -> str:
    """What is wrong with the newest row, and where: the reader may have run far past a quote."""
    text = "".join(lines.row)
    cells = list(_good_cells(text, separator))
    end = cells[-1].end() + 1 if cells else 0
    most = csv.field_size_limit()
    if end < len(text):
        quote = text.index('"', end)
        # The first line of the row that ends behind the quote.
        opened = next(n for n, end in enumerate(accumulate(map(len, lines.row))) if quote < end)
        place = f"line {lines.begin + opened}"
        if opened == len(lines.row) - 1 and "expected after" in str(error):
            return f"{place}: text after a closing quote; double the quotes inside cells"
        limit = f" (a cell has at most {most:,} characters)" if "limit" in str(error) else ""
        return (
            f"{place}: a quote opens a cell and is not closed; close it, and double the quotes "
            f"inside cells{limit}"
        )
    place = f"line {lines.begin}"
    for index, cell in enumerate(cells):
        if len(cell[0]) > most:
            column = repr(head[index]) if index < len(head) else f"column {index + 1}"
            return (
                f"{place}: {column} has more than {most:,} characters; shorten it, or remove the "
                "row"
            )
    return f"{place}: not CSV ({error})"


def _good_cells(text: str, separator: str) -> Iterator[re.Match[str]]:
    """The cells of a row, up to the first quoted one that does not end well."""
    ends = rf"{re.escape(separator)}\r\n"
    # A quoted cell that ends well, or an unquoted one, in which quotes have no meaning.
    good_cell = re.compile(rf' *"(?:[^"]|"")*+"(?=[{ends}]|\Z)|(?! *")[^{ends}]*')
    position = 0
    while position < len(text) and (cell := good_cell.match(text, position)):
        yield cell
        position = cell.end() + 1
