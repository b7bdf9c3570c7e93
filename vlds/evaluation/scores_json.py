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

from vlds.runtime.json_record import parse_record
from vlds.runtime.regular_file import read_file
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
    data = read_file(path)
    try:
        tree = parse_record(dict[str, Any], data)
        if isinstance(tree.get("columns"), list):
            data = json.dumps(former_comparison(tree)).encode()
        return parse_record(dict[str, Scored], data)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{path}: holds no scores as `vlds evaluate` or `vlds demo` writes them ({error}); "
            "write it again, or remove it"
        ) from None


def former_comparison(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of an earlier form, which `vlds demo` wrote: a column a model, the run's own
    last. The facts beside them are in metrics.jsonl too."""
    others, own = tree["columns"][:-1], tree["columns"][-1]
    return {
        task: {
            "data": entry.get("data"),
            "examples": entry.get("examples"),
            "scores": entry.get(own) or {},
            "headline": entry.get("headline"),
            "compared": {label: entry[label] for label in others if entry.get(label)},
        }
        for task, entry in tree["tasks"].items()
    }
