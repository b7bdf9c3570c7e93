"""Files that tests write and read: JSON, and JSON lines such as metrics, ledgers and rows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
"""Top folder of the repository."""
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
"""A block of code in a page: its language, and its lines."""


def write(path: Path, content: Any) -> Path:
    """Write bytes or a text as they are, anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    else:
        path.write_text(json.dumps(content), encoding="utf-8")
    return path


def read_lines(path: Path) -> list[Any]:
    """The value on each line of a file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def json_lines(values: Iterable[Any]) -> str:
    """A text with one value on each line."""
    return "".join(json.dumps(value) + "\n" for value in values)


def write_lines(path: Path, values: Iterable[Any]) -> None:
    """Write one value on each line."""
    path.write_text(json_lines(values), "utf-8")
