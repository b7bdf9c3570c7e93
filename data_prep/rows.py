"""Rows of a file that somebody has at hand: JSON lines, a JSON list or CSV."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from data_prep.source import open_text, read_json_lines, read_json_list, shown
from vlds.runtime.regular_file import open_file

Row = Mapping[str, Any]

TABLES = (".csv", ".tsv")
SEPARATORS = (",", ";", "\t", "|")
"""Spreadsheets write a semicolon where the comma stands in numbers."""


def read_rows(path: Path) -> list[Row]:
    """Rows by the first character: `[` opens a JSON list, `{` JSON lines, anything else is CSV."""
    if not path.exists():
        raise ValueError(f"--annotations {path} does not exist")
    first = _first_character(path)
    if path.suffix.lower() in TABLES or first not in ("[", "{"):
        return _read_table(path)
    if first == "{":
        return list(read_json_lines(path))
    rows = read_json_list(path)
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"{path}, row {number}: expected an object, found {shown(row)}")
    return list(rows)


def _first_character(path: Path) -> str:
    with TextIOWrapper(open_file(path), encoding="utf-8-sig", errors="replace") as file:
        return next((line.strip()[0] for line in file if line.strip()), "")


def _read_table(path: Path) -> list[Row]:
    rows = _cells(path)
    for number, row in enumerate(rows):
        if None in row or None in row.values():
            raise ValueError(
                f"{path}, row {number}: more or fewer cells than the head line has; "
                "quote cells that hold the separator"
            )
    return rows


def _cells(path: Path) -> list[Row]:
    with open_text(path, newline="") as file:
        separator = "\t" if path.suffix.lower() == ".tsv" else _separator(file.readline())
        file.seek(0)
        reader = csv.DictReader(file, delimiter=separator, strict=True)
        try:
            rows = list[Row](reader)
        except csv.Error as error:
            raise ValueError(
                f"{path}, after line {reader.line_num}: not CSV ({error}); "
                "close every quote, and double those inside a cell"
            ) from error
    return rows


def _separator(head: str) -> str:
    """The one that makes the most columns of the head line."""
    unquoted = "".join(head.split('"')[::2])
    return max(SEPARATORS, key=unquoted.count)
