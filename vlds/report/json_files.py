"""JSON as it lies in a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlds.runtime import json_file
from vlds.runtime.json_file import parse_json
from vlds.runtime.regular_file import read_text


def read_json(path: Path) -> Any:
    """Parse a file.

    Errors: ValueError naming the file.
    """
    try:
        return json_file.read_json(path)
    except ValueError as error:
        raise ValueError(f"{path}: is not JSON ({error}); write it anew") from None


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """One object a line; a last line that was cut off is left out.

    Errors: ValueError naming file and line.
    """
    texts = read_text(path).removesuffix("\n").split("\n")
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(texts, 1):
        try:
            line = parse_json(text)
        except ValueError as error:
            if number < len(texts):
                raise ValueError(f"{path}, line {number}: is not JSON ({error})") from None
            continue
        if not isinstance(line, dict):
            raise ValueError(f"{path}, line {number}: is no object: {text[:60]}; remove the line")
        lines.append(line)
    return lines
