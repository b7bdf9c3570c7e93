"""Rows of a user's file: JSON lines, a JSON list or a table (CSV); and what other files are."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from data_prep.json_rows import JsonRow, open_text, read_json, read_lines, read_object
from data_prep.own_data.table import TABLES, read_table
from vlds.runtime.near_names import guess
from vlds.runtime.regular_file import open_file

Fields = Mapping[str, Any]
MOST_FIELDS = 12
"""Fields of a row that an error shows."""
BINARY: tuple[tuple[bytes, str], ...] = (
    (
        b"PAR1",
        "is Parquet; write its pictures as files and its rows as JSON lines first "
        '("Parquet" in docs/own_data.md has the lines that do it)',
    ),
    (b"ARROW1", "is Arrow; write its pictures as files and its rows as JSON lines first"),
    (b"PK\x03\x04", "is an Excel workbook or a ZIP archive; save it as CSV (UTF-8), or unpack it"),
    (b"\xd0\xcf\x11\xe0", "is an Excel workbook; save it as CSV (UTF-8)"),
    (b"\x1f\x8b", "is compressed with gzip; unpack it with gunzip"),
    (b"\x28\xb5\x2f\xfd", "is compressed with Zstandard; unpack it with unzstd"),
    (b"SQLite format 3", "is an SQLite database; export the table as CSV"),
    (b"\xff\xfe", "is UTF-16; save it as UTF-8"),
    (b"\xfe\xff", "is UTF-16; save it as UTF-8"),
)
"""First bytes of a file -> what it is, and the cure."""
UTF_16: Mapping[str, slice] = {"UTF-16LE": slice(1, None, 2), "UTF-16BE": slice(0, None, 2)}
"""Encoding -> which bytes of plain English text are zero."""
PUBLISHED: tuple[tuple[Collection[str], str, str], ...] = (
    (("conversations",), "LLaVA's conversations", "jsonl --task vqa"),
    (("messages",), "ShareGPT's conversations", "jsonl --task vqa"),
    (("images", "annotations"), "COCO's", "coco-captions --annotations FILE"),
    (("images", "dataset"), "Karpathy's split of COCO", "coco-karpathy --annotations FILE"),
    (("questions", "data_subtype"), "the questions of VQA v2", "vqav2 --questions FILE"),
    (("questions", "task_type"), "the questions of VQA v2", "vqav2 --questions FILE"),
    (("question_id", "img_id", "sent"), "LXMERT's questions", "vqav2 --questions FILE"),
    (("img0", "img1", "sent"), "LXMERT's NLVR2", "nlvr2 --annotations FILE"),
    (("identifier", "sentence"), "NLVR2", "nlvr2 --annotations FILE"),
    (("pairID", "gold_label", "sentence2"), "SNLI-VE", "snli-ve --annotations FILE"),
    (("id", "qas"), "the questions of Visual Genome", "vg --what questions"),
    (("id", "regions"), "the regions of Visual Genome", "vg --what regions"),
)
"""Fields of a published file, its name, and the command that takes it."""


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
    _refuse_binary(path)
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


def _refuse_binary(path: Path) -> None:
    """Errors: ValueError for a folder, or a file that is not text."""
    if path.is_dir():
        raise ValueError(f"--annotations {path} is a folder; give the file of rows in it")
    with open_file(path) as file:
        begin = file.read(16)
    for magic, fault in BINARY:
        if begin.startswith(magic):
            raise ValueError(f"--annotations {path} {fault}")
    for encoding, positions in UTF_16.items():
        high_bytes = begin[positions]
        if high_bytes.count(0) > len(high_bytes) / 2:
            raise ValueError(
                f"--annotations {path} looks like UTF-16 without a byte-order mark (it has zero "
                f"bytes); save it as UTF-8: iconv -f {encoding} -t UTF-8 {path.name} > NEW"
            )


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
        line += text.count("\n", counted, position)  # from 0 each time, it would be quadratic
        counted = position
        yield line
        _, position = decoder.raw_decode(text, position)


def list_fields(fields: Fields) -> str:
    """For messages: "it has image, question, ..."."""
    more = ", ..." if len(fields) > MOST_FIELDS else ""
    return f"it has {', '.join(map(str, [*fields][:MOST_FIELDS]))}{more}"


def published_as(fields: Mapping[str, object]) -> str:
    """Which published file has these fields, and the command that takes it; "" if unknown."""
    if fields and all(isinstance(v, dict) and "imageId" in v for v in list(fields.values())[:3]):
        return "it looks like the questions of GQA, which `gqa --src` takes"
    for wanted, what, command in PUBLISHED:
        if all(name in fields for name in wanted):
            return f"it looks like {what}, which `{command}` takes"
    return ""
