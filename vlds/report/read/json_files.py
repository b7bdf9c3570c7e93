"""JSON as it lies in a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlds.runtime import json_file


def read_json(path: Path) -> Any:
    """Parse a file.

    Errors: ValueError naming the file.
    """
    try:
        return json_file.read_json(path)
    except ValueError as error:
        raise ValueError(f"{path}: is not JSON ({error}); write it anew") from None
