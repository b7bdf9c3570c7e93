"""What a run wrote for its examples: the newest predictions of every task."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlds.report.json_files import read_json_lines

STEP = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Predictions:
    """One task's examples, in the order of their ids."""

    file: Path
    step: int | None
    """Of the training that they were made at; None where `vlds evaluate` made them."""
    predictions: Mapping[str, str]
    references: Mapping[str, Any]
    confidences: Mapping[str, float]
    """Of the examples whose line has one: probability of the prediction, 0..1."""
    samples: Mapping[str, str]
    """Id of the sample of each example whose line names one."""


def newest_predictions(run: Path) -> dict[str, Predictions]:
    """Per task, and per list of test data (TASK.test), the file that was written last: by the
    training's newest evaluation, or by `vlds evaluate`."""
    folder = run / "predictions"
    steps = sorted(folder.glob("step-*"))
    found: dict[str, Path] = {}
    for place in [*steps[-1:], folder]:
        for file in sorted(place.glob("*.jsonl")):
            earlier = found.get(file.stem)
            if earlier is None or file.stat().st_mtime > earlier.stat().st_mtime:
                found[file.stem] = file
    return {task: read_predictions(file) for task, file in found.items()}


def read_predictions(file: Path) -> Predictions:
    """Read one task's file; a last line that was cut off is left out.

    Errors: ValueError naming the file.
    """
    lines = read_json_lines(file)
    for line in lines:
        if lacking := {"id", "prediction", "reference"} - set(line):
            raise ValueError(
                f"{file}: a line without {', '.join(sorted(lacking))}: {str(line)[:100]}; evaluate "
                "the run anew"
            )
        for name in ("id", "prediction", "sample"):
            if not isinstance(line.get(name, ""), str):
                raise ValueError(
                    f"{file}: {name} is {line[name]!r}, no text; evaluate the run anew"
                )
    lines.sort(key=lambda line: line["id"])
    step = STEP.fullmatch(file.parent.name)
    return Predictions(
        file=file,
        step=int(step[1]) if step else None,
        predictions={line["id"]: line["prediction"] for line in lines},
        references={line["id"]: line["reference"] for line in lines},
        confidences={
            line["id"]: line["confidence"] for line in lines if line.get("confidence") is not None
        },
        samples={line["id"]: line["sample"] for line in lines if "sample" in line},
    )
