"""JSON from anybody's file or member: its size and depth are checked before it is parsed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from vlds.runtime.regular_file import LARGEST_FILE, read_file

LARGEST_MEMBER = 64 << 20
"""Bytes of a sample's json."""
DEEPEST = 100
"""Levels of nesting. Python's parser raises RecursionError at about a thousand."""
ONE_KIND = bytes.maketrans(b"{}", b"[]")
NO_STRUCTURE = bytes(set(range(256)) - set(b'[]{}"'))
TOKENS = re.compile(r'"(?:\\.|[^"\\])*"|-?Infinity|NaN|-?\d[\d.eE+-]*')
"""Texts, which may hold anything, and numbers, which may not be finite."""
Pairs = list[tuple[str, Any]]


class NotFinite(ValueError):
    """NaN, an infinity, or a number that does not fit a double."""


def read_json(file: Path, largest: int = LARGEST_FILE) -> Any:
    """Read a JSON file.

    Errors: as `parse_json`; CannotOpen; FileNotFoundError.
    """
    return parse_json(read_file(file, largest))


def read_named_json(path: str, field: str, cure: str) -> Any:
    """Read the JSON file that a recipe's field names.

    Errors: ValueError that begins with the field and the path; of a file that cannot be opened, it
    ends with the cure.
    """
    try:
        return read_json(Path(path))
    except OSError as error:
        raise ValueError(f"{field}: {path}: {error.strerror}; {cure}") from None
    except ValueError as error:
        raise ValueError(f"{field}: {path} is not JSON ({error})") from None


def parse_json(data: bytes | str) -> Any:
    """Parse JSON; the caller adds to errors where it comes from.

    Errors: JSONDecodeError; ValueError if it is nested too deep.
    """
    check_depth(data)
    return json.loads(data)


def strict_json(
    text: str, source: str, object_pairs_hook: Callable[[Pairs], Any] | None = None
) -> Any:
    """Parse JSON as its standard defines it, without NaN, Infinity or numbers that do not fit a
    double: Python accepts these, and would store them as the texts "nan" and "inf".

    Errors: JSONDecodeError; ValueError if it is nested too deep; NotFinite that names `source`, the
    line if there are several, and the number.
    """
    check_depth(text)
    try:
        return json.loads(
            text,
            parse_constant=_refuse,
            parse_float=_finite,
            object_pairs_hook=object_pairs_hook,
        )
    except NotFinite as error:
        raise NotFinite(f"{source}{_line_of(text)}: {error}") from None


def _refuse(word: str) -> Any:
    raise NotFinite(f"{word} is not a number; give a finite one, text or null")


def _finite(word: str) -> float:
    number = float(word)
    return number if math.isfinite(number) else _refuse(word)


def _line_of(text: str) -> str:
    """The line of the first number that is not finite; "" if there is only one line."""
    if "\n" not in text.strip():
        return ""
    for token in TOKENS.finditer(text):
        if token[0][0] != '"' and not math.isfinite(float(token[0])):
            return f", line {text.count(chr(10), 0, token.start()) + 1}"
    return ""


def parse_member(data: bytes | memoryview) -> Any:
    """Parse the json of a sample, faster than `parse_json`.

    Errors: ValueError, also if it is larger than any sample's.
    """
    if len(data) > LARGEST_MEMBER:
        raise ValueError(f"{len(data):,} bytes of json; at most {LARGEST_MEMBER:,} are read")
    check_depth(data)
    return orjson.loads(data)


def check_depth(data: bytes | memoryview | str) -> None:
    """Errors: ValueError if values are nested deeper than in any file of vlds."""
    plain = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else bytes(data)
    if plain.count(b"[") + plain.count(b"{") > DEEPEST and depth(plain) > DEEPEST:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep")


def depth(data: bytes) -> int:
    """Levels of nesting, counted up to DEEPEST + 1; brackets that are never closed all count.

    Keeps the brackets alone, then removes the innermost pairs level by level: that takes a fraction
    of the time of parsing.
    """
    if b"\\" in data:
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    parts = data.translate(ONE_KIND, NO_STRUCTURE).split(b'"')
    structure = b"".join(parts[::2])  # every other part is inside a string
    levels = 0
    while structure and levels <= DEEPEST:
        inner = structure.replace(b"[]", b"")
        if len(inner) == len(structure):
            return levels + len(structure)
        structure = inner
        levels += 1
    return levels
