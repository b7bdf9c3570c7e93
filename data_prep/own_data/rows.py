"""Rows of a user's file: JSON lines, a JSON list or a table (CSV)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from data_prep.json_rows import JsonRow, open_text, read_json, read_lines, read_object
from data_prep.own_data.other_formats import refuse_binary
from data_prep.own_data.table import TABLES, read_table
from vlds.runtime.near_names import guess
from vlds.runtime.regular_file import open_file

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """A row and its place in the file."""

    fields: Fields
    number: str
    """Of its first line, from 1; if several rows share a line, the row's own number from 1."""
    noun: str = "line"
    fault: str = ""
    """Why it cannot be used, if that is known already."""

    @property
    def place(self) -> str:
        """For messages: "line 7"."""
        return f"{self.noun} {self.number}"


def read_rows(path: Path) -> list[Row]:
    """Rows by the first character: `[` begins a JSON list, `{` JSON lines or one JSON object, which
    becomes the only row; anything else is a table."""
    if not path.exists():
        files = [other.name for other in path.parent.glob("*") if other.is_file()]
        hint = guess(path.name, files).rstrip()
        raise ValueError(f"--annotations {path} does not exist{'; ' if hint else ''}{hint}")
    refuse_binary(path)
    first = _first_line(path)
    if path.suffix.lower() in TABLES or not first.startswith(("[", "{")):
        return [Row(fields, str(line)) for line, fields in read_table(path)]
    if first.startswith("["):
        return _read_list(path)
    if first.endswith("},") and _is_object(first[:-1]):
        raise ValueError(
            f"{path}: a comma follows the first row; JSON lines have no commas between rows, and a "
            "JSON list begins with ["
        )
    if first.endswith("}"):
        return [Row(row.fields, str(line)) for line, row in read_lines(path)]
    return [Row(read_object(path).fields, "1")]


def _first_line(path: Path) -> str:
    """The first line that is not blank."""
    with TextIOWrapper(open_file(path), encoding="utf-8-sig", errors="replace") as file:
        return next((line.strip() for line in file if line.strip()), "")


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _read_list(path: Path) -> list[Row]:
    """The rows of a JSON list, named by line unless several share one."""
    entries = read_json(path)
    with open_text(path) as file:
        lines = list(_entry_lines(file.read()))
    noun = "line" if len(set(lines)) == len(lines) else "row"
    numbers = lines if noun == "line" else range(1, len(entries) + 1)
    return [
        Row(JsonRow(entry, f"{path}, {noun} {number}").fields, str(number), noun)
        for number, entry in zip(numbers, entries, strict=True)
    ]


def _entry_lines(text: str) -> Iterator[int]:
    """The line on which each entry of a valid JSON list begins."""
    decoder = json.JSONDecoder()
    between = re.compile(r"[\s,]*")
    position, line, counted = text.index("[") + 1, 1, 0
    while True:
        match = between.match(text, position)
        position = match.end() if match else position
        if text[position] == "]":
            return
        line += text.count("\n", counted, position)
        counted = position
        yield line
        _, position = decoder.raw_decode(text, position)
