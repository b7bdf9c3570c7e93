"""What every parser returns: samples that name their pictures, before any picture is opened.

A parser reads the official files only. `pack` checks that the pictures exist before it writes the
first shard, and opens them.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

from data_prep.packing.feature_file import FeatureFile
from vlds.runtime.json_file import NotFinite, strict_json
from vlds.runtime.regular_file import open_file

Annotation = dict[str, Any]
TYPES = ("answer_type", "question_type")
"""Fields by which scores of questions are split, where a source has them."""
LARGEST_SOURCE = 4 << 30
"""Bytes of a JSON file: it is read as a whole."""
MOST_SHOWN = 60
"""Characters of a value that an error shows."""
MOST_REASONS = 5
"""Reasons for dropped rows that an error shows."""


@dataclass(frozen=True)
class SourceSample:
    """One image or image pair with everything the source says about it."""

    id: str
    images: tuple[Path, ...]
    annotations: list[Annotation]
    source: dict[str, Any] = field(default_factory=dict)
    """Fields of the source that a sample's json has no named place for."""
    features: tuple[FeatureFile, ...] = ()
    """Stored features, if the sample has no images."""
    extra: dict[str, Any] = field(default_factory=dict)
    """More fields of the sample's json: a clip's subtitles and span."""
    place: str = ""
    """Where in the source its files are named, such as "line 7"."""

    @property
    def named_by(self) -> str:
        """What names its files: a line, or an annotation."""
        first = self.annotations[0]["id"] if self.annotations else self.id
        return self.place or f"annotation {first}"

    @property
    def option(self) -> str:
        """The option that says where its files lie."""
        return "--features" if self.features else "--images"


@dataclass(frozen=True)
class SourceSet:
    """A data set as its publisher wrote it."""

    name: str
    kind: str
    split: str
    files: tuple[Path, ...]
    """The annotation files, for the record in dataset.json."""
    samples: list[SourceSample]
    dropped: tuple[Mapping[str, str], ...] = ()
    """Rows that cannot be used: {"id", "reason"}."""
    left_out: tuple[Mapping[str, str], ...] = ()
    """Whole samples that are not wanted, likewise; their annotations are among the dropped."""

    def check(self) -> None:
        """Refuse no samples and double ids."""
        if not self.samples:
            reasons = [f"{reason}: {n:,}" for reason, n in count_reasons(self.dropped).items()]
            dropped = f"; dropped: {', '.join(reasons[:MOST_REASONS])}" if reasons else ""
            raise ValueError(
                f"{file_names(self.files)}: no usable sample for split {self.split!r}{dropped}"
            )
        for noun, ids in (
            ("sample", (sample.id for sample in self.samples)),
            ("annotation", (a["id"] for sample in self.samples for a in sample.annotations)),
        ):
            double = [name for name, count in Counter(ids).items() if count > 1]
            if double:
                raise ValueError(
                    f"{file_names(self.files)}: {noun} id {double[0]} stands more than once"
                    f"{and_more(len(double) - 1, 'id')}; ids must be unique"
                )


@contextmanager
def open_text(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    """A file of text in UTF-8, with the mark that spreadsheets put before it or without.

    Errors: ValueError for one that is not there, or in another encoding.
    """
    try:
        with TextIOWrapper(open_file(path), encoding="utf-8-sig", newline=newline) as file:
            yield file
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; check the folder and the split") from None
    except UnicodeDecodeError as error:
        odd = error.object[error.start]
        raise ValueError(
            f"{path} is not UTF-8 (byte 0x{odd:02x}{_in_line(path)}); save it as UTF-8"
        ) from None


def _in_line(path: Path) -> str:
    """Where the first byte is that is not UTF-8."""
    with open_file(path) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return f" in line {number}"
    return ""


def read_json(path: Path) -> Any:
    """A JSON file, or an error that says what is wrong with it."""
    with open_text(path) as file:
        if os.fstat(file.fileno()).st_size > LARGEST_SOURCE:
            raise ValueError(f"{path}: more than {LARGEST_SOURCE:,} bytes; split it")
        text = file.read()
    try:
        return strict_json(text, str(path))
    except NotFinite:
        raise
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def read_json_list(path: Path) -> list[Any]:
    """A JSON file that holds a list."""
    rows: list[Any] = _expect(read_json(path), list, f"{path}", "a list")
    return rows


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """A file with one JSON object a line; blank lines are skipped."""
    return [row for _, row in numbered_json_lines(path)]


def numbered_json_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The same with the number of each object's line, from 1."""
    with open_text(path) as file:
        return [
            (number, _json_object(line, f"{path}, line {number}"))
            for number, line in enumerate(file, 1)
            if line.strip()
        ]


def _json_object(text: str, place: str) -> dict[str, Any]:
    try:
        row = strict_json(text, place)
    except NotFinite:
        raise
    except ValueError as error:
        raise ValueError(f"{place}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"{place}: expected an object {{...}}, found {type(row).__name__}")
    return row


def take(row: Mapping[str, Any], key: str, place: str) -> Any:
    """`row[key]`, or an error that names the file, the key and the keys there are."""
    if not isinstance(row, Mapping):
        raise ValueError(f"{place}: expected an object with {key!r}, found {type(row).__name__}")
    if key not in row:
        there = ", ".join(map(str, list(row)[:8])) or "nothing"
        raise ValueError(f"{place}: no field {key!r}; it has {there}. Is it the official file?")
    return row[key]


def take_text(row: Mapping[str, Any], key: str, place: str) -> str:
    """`row[key]`, which must be text."""
    text: str = _expect(take(row, key, place), str, f"{place}: {key!r}", "text")
    return text


def take_list(row: Mapping[str, Any], key: str, place: str) -> list[Any]:
    """`row[key]`, which must be a list."""
    entries: list[Any] = _expect(take(row, key, place), list, f"{place}: {key!r}", "a list")
    return entries


def take_object(row: Mapping[str, Any], key: str, place: str) -> dict[str, Any]:
    """`row[key]`, which must be an object."""
    what, expected = f"{place}: {key!r}", "an object {...}"
    fields: dict[str, Any] = _expect(take(row, key, place), dict, what, expected)
    return fields


def take_whole(row: Mapping[str, Any], key: str, place: str) -> int:
    """`row[key]`, which must be a whole number."""
    number: int = _expect(take(row, key, place), int, f"{place}: {key!r}", "a whole number")
    return number


def take_id(row: Mapping[str, Any], key: str, place: str) -> str:
    """`row[key]` as text: ids are numbers in one file and text in another."""
    expected = "text or a whole number"
    return str(_expect(take(row, key, place), (str, int), f"{place}: {key!r}", expected))


def _expect(value: Any, kind: type | tuple[type, ...], what: str, expected: str) -> Any:
    """The value, or an error that shows it; true and false do not count as numbers."""
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{what} is {shown(value)}; expected {expected}")
    return value


def shown(value: Any) -> str:
    """A value as the file writes it, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def rest(row: Mapping[str, Any], *known: str) -> dict[str, Any]:
    """The fields of a row that have no named place, for its "source"."""
    return {key: value for key, value in row.items() if key not in known}


def with_source(annotation: Annotation, extra: Mapping[str, Any]) -> Annotation:
    """Add the left-over fields, where there are any."""
    return {**annotation, "source": dict(extra)} if extra else annotation


def clean(text: str) -> str:
    """One line, single blanks; Java's caption tokenizer takes even U+2028 for a new line."""
    return " ".join(text.split())


def first_existing(candidates: Sequence[Path]) -> Path:
    """The first that is there, else the first of all: the official place, for the error to name."""
    return next((path for path in candidates if path.is_file()), candidates[0])


def count_reasons(dropped: Iterable[Mapping[str, str]]) -> dict[str, int]:
    """How often each reason occurs, most frequent first."""
    return dict(Counter(entry["reason"] for entry in dropped).most_common())


def file_names(files: Sequence[Path]) -> str:
    """Without their folders."""
    return ", ".join(path.name for path in files)


def and_more(count: int, noun: str) -> str:
    """How many others there are."""
    return f" (and {count} more {noun}{'s' if count > 1 else ''})" if count else ""
