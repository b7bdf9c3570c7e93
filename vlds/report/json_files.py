"""JSON as it lies in a run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_json(path: Path) -> Any:
    """Parse a file.

    Errors: ValueError naming the file.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: is not JSON ({error}); write it anew") from None


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """One object a line; a last line that was cut off is left out.

    Errors: ValueError naming file and line.
    """
    texts = path.read_text("utf-8").removesuffix("\n").split("\n")
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            if number < len(texts):
                raise ValueError(f"{path}, line {number}: is not JSON ({error})") from None
            continue
        if not isinstance(line, dict):
            raise ValueError(f"{path}, line {number}: is no object: {text[:60]}; remove the line")
        lines.append(line)
    return lines
