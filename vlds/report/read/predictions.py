"""What a run wrote for its examples: the newest predictions of every task."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlds.runtime.json_file import parse_json
from vlds.runtime.regular_file import read_text
from vlds.runtime.run_folder import PREDICTIONS

STEP = re.compile(r"step-(\d+)")
FIELDS = {"id", "of", "prediction", "reference"}
"""What every line has; `of` is the number of lines."""
AGAIN = "evaluate the run again, with `vlds evaluate --run`"


@dataclass(frozen=True)
class Predictions:
    """One task's examples, in the order of their ids."""

    file: Path
    step: int | None
    """Of the training that they were made at; None where `vlds evaluate` made them."""
    predictions: Mapping[str, str]
    references: Mapping[str, Any]
    confidences: Mapping[str, float]
    """How sure the model was of each example whose line says so, 0..1: the probability of the
    answer; of a text of several tokens, the geometric mean over these."""
    samples: Mapping[str, str]
    """Id of the sample of each example whose line names one."""
    data: str | None = None
    """Name, split and fingerprint of the data sets; None where the lines do not say it."""


class DamagedPredictions(ValueError):
    """A file of predictions that is not what was written."""


def newest_predictions(run: Path) -> dict[str, Path]:
    """Per task, and per list of test data (TASK.test), the file that was written last: by the
    training's newest evaluation, or by `vlds evaluate`."""
    folder = run / PREDICTIONS
    steps = sorted(folder.glob("step-*"))
    found: dict[str, Path] = {}
    for place in [*steps[-1:], folder]:
        for file in sorted(place.glob("*.jsonl")):
            earlier = found.get(file.stem)
            if earlier is None or file.stat().st_mtime > earlier.stat().st_mtime:
                found[file.stem] = file
    return found


def predictions_elsewhere(run: Path) -> list[Path]:
    """The files of data that are not the run's own."""
    return sorted((run / PREDICTIONS).glob("*@*/*.jsonl"))


def read_predictions(file: Path) -> Predictions:
    """Read one task's file.

    Errors: DamagedPredictions naming the file and, where it is one, the line.
    """
    lines = [_line(file, number, text) for number, text in enumerate(_texts(file), 1)]
    if not lines:
        raise DamagedPredictions(f"{file} is empty; {AGAIN}")
    if odd := {line.get("data") for line in lines} - {lines[0].get("data")}:
        raise DamagedPredictions(f"{file} is of {lines[0].get('data')} and of {odd.pop()}; {AGAIN}")
    if len(lines) != (whole := lines[0]["of"]):
        raise DamagedPredictions(f"{file} holds {len(lines):,} of {whole:,} examples; {AGAIN}")
    lines.sort(key=lambda line: line["id"])
    step = STEP.fullmatch(file.parent.name)
    return Predictions(
        file=file,
        step=int(step[1]) if step else None,
        predictions={line["id"]: line["prediction"] for line in lines},
        references={line["id"]: line["reference"] for line in lines},
        confidences={
            line["id"]: found
            for line in lines
            if (found := line.get("token_confidence", line.get("confidence"))) is not None
        },
        samples={line["id"]: line["sample"] for line in lines if "sample" in line},
        data=lines[0].get("data"),
    )


def first_data(file: Path) -> str | None:
    """The data that a file's first line names.

    Errors: DamagedPredictions.
    """
    texts = _texts(file)[:1]
    data = _line(file, 1, texts[0]).get("data") if texts else None
    return str(data) if data is not None else None


def _texts(file: Path) -> list[str]:
    # Not splitlines: JSON may hold other line ends (U+2028) as they are.
    text = read_text(file, errors="replace").removesuffix("\n")
    return text.split("\n") if text else []


def _line(file: Path, number: int, text: str) -> dict[str, Any]:
    """One example.

    Errors: DamagedPredictions.
    """
    place = f"{file}, line {number}"
    try:
        line = parse_json(text)
    except ValueError:
        raise DamagedPredictions(f"{place} is cut or no JSON; {AGAIN}") from None
    if not isinstance(line, dict) or (lacking := FIELDS - set(line)):
        what = f"has no {', '.join(sorted(lacking))}" if isinstance(line, dict) else "is no object"
        raise DamagedPredictions(f"{place} {what}: {text[:100]}; {AGAIN}")
    kinds = {"id": str, "of": int, "prediction": str, "sample": str, "data": str}
    for name, kind in kinds.items():
        if name in line and type(line[name]) is not kind:
            expected = "text" if kind is str else "a whole number"
            raise DamagedPredictions(f"{place}: {name} is {line[name]!r}, not {expected}; {AGAIN}")
    return line
