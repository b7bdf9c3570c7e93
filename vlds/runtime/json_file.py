"""JSON from anybody's file or member: bounded in bytes and depth before anything is built of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from vlds.runtime.regular_file import LARGEST_FILE, read_file

LARGEST_MEMBER = 64 << 20
"""Bytes of a sample's json."""
DEEPEST = 100
"""Levels of nesting. Python's own reader ends in RecursionError at about a thousand."""
ONE_KIND = bytes.maketrans(b"{}", b"[]")
NO_STRUCTURE = bytes(set(range(256)) - set(b'[]{}"'))
Pairs = list[tuple[str, Any]]


def read_json(file: Path, largest: int = LARGEST_FILE) -> Any:
    """What a JSON file holds.

    Errors: as `parse_json`; CannotOpen; FileNotFoundError.
    """
    return parse_json(read_file(file, largest))


def parse_json(data: bytes | str, object_pairs_hook: Callable[[Pairs], Any] | None = None) -> Any:
    """What JSON holds; the caller adds whose it is.

    Errors: JSONDecodeError; ValueError where it is nested too deep.
    """
    check_depth(data)
    return json.loads(data, object_pairs_hook=object_pairs_hook)


def parse_member(data: bytes | memoryview) -> Any:
    """The same for the json of a sample, faster.

    Errors: ValueError, also where it is larger than any sample's.
    """
    if len(data) > LARGEST_MEMBER:
        raise ValueError(f"{len(data):,} bytes of json; at most {LARGEST_MEMBER:,} are read")
    check_depth(data)
    return orjson.loads(data)


def check_depth(data: bytes | memoryview | str) -> None:
    """Errors: ValueError where values are nested deeper than in any file of vlds."""
    plain = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else bytes(data)
    if plain.count(b"[") + plain.count(b"{") > DEEPEST and depth(plain) > DEEPEST:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep")


def depth(data: bytes) -> int:
    """Levels of nesting, from DEEPEST + 1 on not counted further; of what is not closed, all
    brackets count.

    Of the data, brackets alone are kept. Then the innermost pairs go, level by level: that takes a
    fraction of the time of parsing.
    """
    if b"\\" in data:
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    parts = data.translate(ONE_KIND, NO_STRUCTURE).split(b'"')
    structure = b"".join(parts[::2])  # the others are inside strings
    levels = 0
    while structure and levels <= DEEPEST:
        inner = structure.replace(b"[]", b"")
        if len(inner) == len(structure):
            return levels + len(structure)
        structure = inner
        levels += 1
    return levels
