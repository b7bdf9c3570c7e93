"""Reads the predictions that a run wrote, one file a task."""

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
"""Required in every line; `of` is the number of lines."""
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

    @property
    def label(self) -> str:
        """The task's list: TASK, or TASK.test."""
        return self.file.stem

    @property
    def is_own(self) -> bool:
        """True for data of the run's recipe, False for other data."""
        return "@" not in self.file.parent.name


def newest_predictions(run: Path) -> dict[str, Path]:
    """Per task, and per list of test data (TASK.test), the file that was written last: by the
    training's newest evaluation, or by `vlds evaluate`."""
    folder = run / PREDICTIONS
    steps = sorted(folder.glob("step-*"))
    newest: dict[str, Path] = {}
    for part in [*steps[-1:], folder]:
        for file in sorted(part.glob("*.jsonl")):
            earlier = newest.get(file.stem)
            if earlier is None or file.stat().st_mtime > earlier.stat().st_mtime:
                newest[file.stem] = file
    return newest


def predictions_elsewhere(run: Path) -> list[Path]:
    """The files of data that are not the run's own."""
    return sorted((run / PREDICTIONS).glob("*@*/*.jsonl"))


def read_predictions(file: Path) -> Predictions:
    """Read one task's file.

    Errors: ValueError naming the file, and the line if one is wrong.
    """
    lines = [_line(file, number, text) for number, text in enumerate(_texts(file), 1)]
    if not lines:
        raise ValueError(f"{file} is empty; {AGAIN}")
    if odd := {line.get("data") for line in lines} - {lines[0].get("data")}:
        raise ValueError(f"{file} is of {lines[0].get('data')} and of {odd.pop()}; {AGAIN}")
    if len(lines) != (whole := lines[0]["of"]):
        raise ValueError(f"{file} holds {len(lines):,} of {whole:,} examples; {AGAIN}")
    lines.sort(key=lambda line: line["id"])
    step = STEP.fullmatch(file.parent.name)
    return Predictions(
        file=file,
        step=int(step[1]) if step else None,
        predictions={line["id"]: line["prediction"] for line in lines},
        references={line["id"]: line["reference"] for line in lines},
        confidences={
            line["id"]: confidence
            for line in lines
            if (confidence := line.get("token_confidence", line.get("confidence"))) is not None
        },
        samples={line["id"]: line["sample"] for line in lines if "sample" in line},
        data=lines[0].get("data"),
    )


def first_data(file: Path) -> str | None:
    """The data that a file's first line names.

    Errors: ValueError, as above.
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

    Errors: ValueError, as above.
    """
    place = f"{file}, line {number}"
    try:
        line = parse_json(text)
    except ValueError:
        raise ValueError(f"{place} is cut or not JSON; {AGAIN}") from None
    if not isinstance(line, dict):
        raise ValueError(f"{place} is not an object: {text[:100]}; {AGAIN}")
    if missing := FIELDS - set(line):
        raise ValueError(f"{place} has no {', '.join(sorted(missing))}: {text[:100]}; {AGAIN}")
    kinds = {"id": str, "of": int, "prediction": str, "sample": str, "data": str}
    for name, kind in kinds.items():
        if name in line and type(line[name]) is not kind:
            expected = "text" if kind is str else "a whole number"
            raise ValueError(f"{place}: {name} is {line[name]!r}, not {expected}; {AGAIN}")
    return line
