"""scores.json: each task's scores on its data, and those of what it is compared with.

    {TASK: {"data": "mine-test@1b2c...", "examples": 48, "scores": {NAME: 0.5, ...}}}

`vlds evaluate` adds `weights`, the hash of what it scored; `vlds demo` adds `headline` and
`compared`: {LABEL: {NAME: 0.2, ...}}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path

from vlds.runtime.json_record import parse_record
from vlds.runtime.regular_file import read_file
from vlds.runtime.whole_file import write_whole

SCORES = "scores.json"
LEFT_IN = "predictions: "
"""What commands say before the folder of what they leave."""


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
    weights: str | None = None
    """SHA-256 of the artifact's weights that were scored, if an artifact was."""

    def __post_init__(self) -> None:
        for scores in (self.scores, *self.compared.values()):
            for name, score in scores.items():
                if not isfinite(score):
                    raise ValueError(f"{name} is {score}, a finite number expected")
        if self.examples is not None and self.examples < 0:
            raise ValueError(f"examples is {self.examples}, 0 or more expected")


def write_scores(folder: Path, scored: Mapping[str, Scored]) -> None:
    """Write scores.json: task -> its entry, without empty optional fields.

    Errors: CannotWrite.
    """
    tree = {task: asdict(entry) for task, entry in scored.items()}
    for entry in tree.values():
        for name in ("headline", "compared", "weights"):
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
        return parse_record(dict[str, Scored], read_file(path))
    except ValueError as error:
        raise ValueError(
            f"{path}: holds no scores as `vlds evaluate` or `vlds demo` writes them ({error}); "
            "write it again, or remove it"
        ) from None
