"""scores.json: each task's scores on its data, and those of what it is compared with.

    {TASK: {"data": "mine-test@1b2c...", "examples": 48, "scores": {NAME: 0.5, ...}}}

Optional are `weights`, the hash of what was scored; `headline`, where a recipe names the score that
stands for the task; and `compared`, by `vlds demo`: {LABEL: {NAME: 0.2, ...}}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path

from vlds.artifact import WEIGHTS
from vlds.runtime.json_record import parse_record
from vlds.runtime.manifest import MANIFEST, recorded_hash
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


def current_scores(folder: Path, run: Path) -> tuple[dict[str, Scored], list[str]]:
    """What a folder's scores.json has of the weights that a run's artifact holds now; and in words,
    what is left out because the run was trained on since, or may be such.

    Errors: ValueError naming a file that holds no scores.
    """
    stored = read_scores(folder)
    named = [task for task, entry in stored.items() if entry.weights is not None]
    weights = weights_of(run) if named else None
    gone = [task for task in named if weights not in (None, stored[task].weights)]
    notes = []
    if gone:
        notes.append(
            f"{folder / SCORES}: its scores of {', '.join(gone)} are of weights that the run no "
            "longer has, so they are left out; `vlds evaluate` writes them again"
        )
    if named and weights is None and (run / "artifact").is_dir():
        notes.append(
            f"{folder / SCORES}: its scores of {', '.join(named)} may be of weights that are gone: "
            f"{run / 'artifact' / MANIFEST} does not say which weights the run has"
        )
    return {task: entry for task, entry in stored.items() if task not in gone}, notes


def weights_of(run: Path) -> str | None:
    """SHA-256 of the weights in a run's artifact; None where its manifest does not have it."""
    try:
        return recorded_hash(run / "artifact", WEIGHTS)
    except (OSError, ValueError, LookupError, TypeError):
        return None
