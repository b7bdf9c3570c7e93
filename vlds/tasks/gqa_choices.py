"""GQA's own files of the answers that are valid or plausible for a question."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def find_choices(place: str) -> list[Path]:
    """The file, or the files of a folder (train_choices/); none where there is neither."""
    path = Path(place).expanduser()
    return sorted(path.glob("*.json")) if path.is_dir() else [path] if path.is_file() else []


def missing_choices(place: str) -> str | None:
    """What to say where no file is there."""
    if find_choices(place):
        return None
    return (
        f"choices: {place} is neither a file of choices nor a folder of them; name "
        "eval/val_choices.json or eval/train_choices of GQA's evaluation files"
    )


def read_choices(place: str, ids: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """The "valid" and "plausible" answers of each question.

    Errors: ValueError for a question that the file does not know.
    """
    found: dict[str, Any] = {}
    wanted = set(ids)
    for path in find_choices(place):
        given = json.loads(path.read_text("utf-8"))
        found |= {key: given[key] for key in wanted & given.keys()}
    if unknown := [key for key in ids if key not in found]:
        raise ValueError(
            f"choices: {place} knows nothing of {len(unknown)} of {len(ids)} questions, such as "
            f"{unknown[0]}; name the file of the split that is evaluated"
        )
    return found
