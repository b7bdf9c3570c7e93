"""JSON files of publishers and users, read with errors that name the file, line and field."""

from __future__ import annotations

import json
import os
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

from vlds.runtime.files import open_file
from vlds.runtime.json_files import NotFinite, in_words, strict_json

LARGEST_SOURCE = 4 << 30
"""Bytes of a JSON file, which is read as a whole."""
UTF_16 = "utf-16"
MOST_SHOWN = 60
"""Characters of a value that an error shows."""
MOST_FIELDS = 8
"""Fields of a row that an error lists."""


class RepeatedKey(dict[str, Any]):
    """A JSON object that has a key twice; as in any other reader, the last value counts.

    It becomes an error where its place is known (JsonRow).
    """

    key: str


@dataclass(frozen=True)
class JsonRow:
    """A JSON object and its place in a file; every error names that place."""

    fields: Mapping[str, Any]
    place: str
    """For errors: "FILE, line 7"."""

    def __post_init__(self) -> None:
        if not isinstance(self.fields, dict):
            raise ValueError(
                f"{self.place}: expected an object {{...}}, found {shown(self.fields)}"
            )
        if isinstance(self.fields, RepeatedKey):
            raise ValueError(
                f"{self.place}: the object has {self.fields.key!r} twice; keep one of them"
            )

    def __contains__(self, key: str) -> bool:
        return key in self.fields

    def value(self, key: str) -> Any:
        """A field of any type, which must be there."""
        if key not in self.fields:
            present = ", ".join(list(self.fields)[:MOST_FIELDS]) or "nothing"
            raise ValueError(
                f"{self.place}: no field {key!r}; it has {present}. Is it the official file?"
            )
        return self.fields[key]

    def text(self, key: str) -> str:
        """A field that must be text."""
        text: str = self._expect(key, str, "text")
        return text

    def line(self, key: str) -> str:
        """A text as one line with single blanks."""
        return clean(self.text(key))

    def id(self, key: str) -> str:
        """An id as text: publishers write it as a number in one file and as text in another."""
        return str(self._expect(key, (str, int), "text or a whole number"))

    def whole(self, key: str) -> int:
        """A field that must be a whole number."""
        number: int = self._expect(key, int, "a whole number")
        return number

    def flag(self, key: str) -> bool:
        """A field that must be true or false."""
        value = self.value(key)
        if not isinstance(value, bool):
            raise ValueError(f"{self.place}: {key!r} is {shown(value)}; expected true or false")
        return value

    def array(self, key: str) -> list[Any]:
        """A field that must be a list."""
        entries: list[Any] = self._expect(key, list, "a list")
        return entries

    def texts(self, key: str) -> list[str]:
        """A field that must be a list of texts."""
        entries = self.array(key)
        for number, entry in enumerate(entries):
            if not isinstance(entry, str):
                raise ValueError(
                    f"{self.place}: entry {number} of {key!r} is {shown(entry)}; expected text"
                )
        return entries

    def object(self, key: str) -> dict[str, Any]:
        """A field that must be an object."""
        fields: dict[str, Any] = self._expect(key, dict, "an object {...}")
        return fields

    def rows(self, key: str, noun: str, first: int = 0) -> Iterator[JsonRow]:
        """The objects of a list; errors call them `noun` and their number, counted from `first`."""
        for number, fields in enumerate(self.array(key), first):
            yield JsonRow(fields, f"{self.place}, {noun} {number}")

    def at(self, place: str) -> JsonRow:
        """The same object under another place."""
        return JsonRow(self.fields, place)

    def rest(self, *known: str) -> dict[str, Any]:
        """The other fields."""
        return {key: value for key, value in self.fields.items() if key not in known}

    def annotate(self, annotation: Mapping[str, Any], *known: str) -> dict[str, Any]:
        """An annotation with the row's other fields, if there are any, under "source"."""
        extra = self.rest(*known)
        return {**annotation, "source": extra} if extra else dict(annotation)

    def _expect(self, key: str, kind: type | tuple[type, ...], expected: str) -> Any:
        value = self.value(key)
        if not isinstance(value, kind) or isinstance(value, bool):  # in Python, true is an int
            raise ValueError(f"{self.place}: {key!r} is {shown(value)}; expected {expected}")
        return value


@contextmanager
def open_text(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    """Open a file in UTF-8, or in UTF-16 with a byte-order mark; spreadsheets write both.

    Errors: ValueError if it is missing or in another encoding.
    """
    try:
        encoding = encoding_of(path)
        with TextIOWrapper(open_file(path), encoding=encoding, newline=newline) as file:
            yield file
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; check the folder and the split") from None
    except UnicodeDecodeError as error:
        if encoding == UTF_16:
            raise ValueError(
                f"{path} begins as UTF-16 and goes on otherwise; save it as UTF-8"
            ) from None
        odd, place = error.object[error.start], ""
        # The decoder counts within its block, so the line is found by reading once more.
        with open_file(path) as lines:
            for number, line in enumerate(lines, 1):
                try:
                    line.decode()
                except UnicodeDecodeError:
                    place = f" in line {number}"
                    break
        raise ValueError(
            f"{path} is not UTF-8 (byte 0x{odd:02x}{place}); save it as UTF-8, which Excel calls "
            "CSV UTF-8"
        ) from None


def encoding_of(path: Path) -> str:
    """UTF-16 if the file begins with a byte-order mark of that, else UTF-8 with or without one."""
    with open_file(path) as file:
        return UTF_16 if file.read(2) in (BOM_UTF16_LE, BOM_UTF16_BE) else "utf-8-sig"


def read_json(path: Path) -> Any:
    """The content of a JSON file; ValueError says what is wrong with it."""
    with open_text(path) as file:
        if os.fstat(file.fileno()).st_size > LARGEST_SOURCE:
            raise ValueError(f"{path}: more than {LARGEST_SOURCE:,} bytes; split it")
        text = file.read()
    cure = "; it holds several values: put them into one list [...]"
    return _parse(text, str(path), f"{path} is", cure)


def read_object(path: Path) -> JsonRow:
    """A JSON file that holds one object."""
    return JsonRow(read_json(path), str(path))


def read_list(path: Path, noun: str = "row", first: int = 0) -> Iterator[JsonRow]:
    """A JSON file that holds a list of objects, counted from `first`."""
    entries = read_json(path)
    if not isinstance(entries, list):
        raise ValueError(f"{path} is {shown(entries)}; expected a list")
    for number, fields in enumerate(entries, first):
        yield JsonRow(fields, f"{path}, {noun} {number}")


def read_lines(path: Path) -> Iterator[tuple[int, JsonRow]]:
    """Number, from 1, and object of each line of a JSON-lines file; blank lines are skipped."""
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                place = f"{path}, line {number}"
                cure = "; write one object per line, without commas between the lines"
                # Leading blanks stay: an error counts the columns from the line's start.
                yield number, JsonRow(_parse(line.strip("\r\n"), place, f"{place}:", cure), place)


def _parse(text: str, place: str, subject: str, cure: str) -> Any:
    """Parse JSON; `subject` begins the sentence "... not JSON", `cure` ends it if a second value
    follows. An object that has a key twice is marked."""

    def make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # A hook of json cannot raise with the row's number, so the object carries the fault on.
        fields = dict(pairs)
        if len(fields) == len(pairs):
            return fields
        repeated = RepeatedKey(fields)
        repeated.key = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        return repeated

    try:
        return strict_json(text, place, make_object)
    except NotFinite:  # its message names the place already
        raise
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if "\n" in text else ""
        end = cure if error.msg == "Extra data" else ""
        raise ValueError(
            f"{subject} not JSON: {error.msg}: {line}column {error.colno}{end}"
        ) from error
    except ValueError as error:
        raise ValueError(f"{subject} not JSON: {in_words(error)}") from error


def clean(text: str) -> str:
    """One line with single blanks; Java's caption tokenizer takes even U+2028 for a new line."""
    return " ".join(text.split())


def shown(value: Any) -> str:
    """A value as JSON, cut if it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."
