"""scores.json: each task's scores on its data, and those of what it is compared with.

    {TASK: {"data": "mine-test@1b2c...", "examples": 48, "scores": {NAME: 0.5, ...}}}

`vlds demo` adds `headline` and `compared`: {LABEL: {NAME: 0.2, ...}}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlds.runtime import json_file
from vlds.runtime.checks import are_numbers, is_number
from vlds.runtime.whole_file import write_whole

SCORES = "scores.json"


@dataclass(frozen=True)
class Scored:
    """One task, scored on its data."""

    data: str | None
    """Names, splits and fingerprint of the data sets; None where they are not known."""
    examples: int | None
    scores: Mapping[str, float]
    headline: str | None = None
    """The score that stands for the task; default: the first."""
    compared: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Label of another model or of a baseline -> its scores on the same data."""


def write_scores(folder: Path, scored: Mapping[str, Scored]) -> None:
    """Write scores.json: task -> its entry, without empty optional fields.

    Errors: CannotWrite.
    """
    tree = {task: asdict(entry) for task, entry in scored.items()}
    for entry in tree.values():
        for name in ("headline", "compared"):
            if not entry[name]:
                del entry[name]
    write_whole(folder / SCORES, json.dumps(tree, indent=1) + "\n")


def read_scores(folder: Path) -> dict[str, Scored]:
    """Read a folder's scores.json; empty where there is none.

    Errors: ValueError naming the file.
    """
    path = folder / SCORES
    if not path.is_file():
        return {}
    try:
        return {task: checked(task, entry) for task, entry in read_json(path).items()}
    except (TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: holds no scores as `vlds evaluate` or `vlds demo` writes them ({error!r}); "
            "write it again, or remove it"
        ) from None


def read_json(path: Path) -> Any:
    """Errors: ValueError naming the file."""
    try:
        return json_file.read_json(path)
    except ValueError as error:
        raise ValueError(f"{path}: is not JSON ({error}); write it again") from None


def checked(task: str, entry: Any) -> Scored:
    """Errors: TypeError where a field is missing, unknown, or has another type."""
    scored = Scored(**entry)
    compared = scored.compared
    right = {
        "data": isinstance(scored.data, str | None),
        "examples": scored.examples is None or is_number(scored.examples),
        "scores": are_numbers(scored.scores),
        "headline": isinstance(scored.headline, str | None),
        "compared": isinstance(compared, dict) and all(map(are_numbers, compared.values())),
    }
    for name, is_right in right.items():
        if not is_right:
            raise TypeError(f"{task}.{name}: {entry[name]!r}")
    return scored
