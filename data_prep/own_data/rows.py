"""Rows of a file that somebody has at hand: JSON lines, a JSON list or a table (CSV)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from data_prep.own_data.other_formats import refuse_binary
from data_prep.own_data.table import TABLES, read_table
from data_prep.packing.source import numbered_json_lines, open_text, read_json, shown
from vlds.runtime.near_names import guess
from vlds.runtime.regular_file import open_file

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """A row and where an editor shows it."""

    fields: Fields
    number: str
    """Of its first line, from 1; where several rows share a line, its own number from 1."""
    noun: str = "line"
    fault: str = ""
    """Why it cannot be used, where that is known already."""

    @property
    def place(self) -> str:
        """For messages: "line 7"."""
        return f"{self.noun} {self.number}"


def read_rows(path: Path) -> list[Row]:
    """Rows by the first character: `[` opens a JSON list, `{` JSON lines or one JSON object, which
    is returned as the only row; anything else is a table."""
    if not path.exists():
        beside = [other.name for other in path.parent.glob("*") if other.is_file()]
        hint = guess(path.name, beside).rstrip()
        raise ValueError(f"--annotations {path} does not exist{'; ' if hint else ''}{hint}")
    refuse_binary(path)
    first = _first_line(path)
    if path.suffix.lower() in TABLES or not first.startswith(("[", "{")):
        return [Row(fields, str(line)) for line, fields in read_table(path)]
    if first.startswith("["):
        return _read_list(path)
    if first.endswith("},") and _is_object(first[:-1]):
        raise ValueError(
            f"{path}: a comma stands behind the first row; JSON lines have none, and a list begins "
            "with ["
        )
    if first.endswith("}"):
        return [Row(fields, str(line)) for line, fields in numbered_json_lines(path)]
    return [Row(_object(read_json(path), f"{path}"), "1")]


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
    entries = read_json(path)
    if not isinstance(entries, list):  # not reached: the file begins with [
        raise ValueError(f"{path} is {shown(entries)}; expected a list")
    with open_text(path) as file:
        lines = list(_entry_lines(file.read()))
    noun = "line" if len(set(lines)) == len(lines) else "row"
    numbers = lines if noun == "line" else range(1, len(entries) + 1)
    return [
        Row(_object(entry, f"{path}, {noun} {number}"), str(number), noun)
        for number, entry in zip(numbers, entries, strict=True)
    ]


def _entry_lines(text: str) -> Iterator[int]:
    """The line on which each entry of a valid JSON list begins."""
    decoder = json.JSONDecoder()
    between = re.compile(r"[\s,]*")
    place, line, counted = text.index("[") + 1, 1, 0
    while True:
        match = between.match(text, place)
        place = match.end() if match else place
        if text[place] == "]":
            return
        line += text.count("\n", counted, place)
        counted = place
        yield line
        _, place = decoder.raw_decode(text, place)


def _object(entry: Any, place: str) -> Fields:
    if not isinstance(entry, dict):
        raise ValueError(f"{place}: expected an object {{...}}, found {shown(entry)}")
    return entry
