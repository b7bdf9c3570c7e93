"""Reads metrics.jsonl, for a resumed run and for a report.

A line counts if it is an object with a whole number as `step` and the right types in the fields
that a report shows. Other lines are skipped with a warning: a record about a run never stops one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlds.runtime.checks import are_numbers, is_number
from vlds.runtime.json_file import parse_json
from vlds.runtime.regular_file import read_text

NUMBERS = (
    "step", "passes", "samples_per_second", "answers_per_second", "seconds", "loss", "most_memory",
)  # fmt: skip
"""Fields that hold a number, beside the parts of the loss."""
SHOWN = 40
"""Characters of a line that a warning shows."""


@dataclass(frozen=True)
class MetricLines:
    """The content of a file."""

    lines: list[tuple[str, dict[str, Any]]]
    """Each line that counts, as text and parsed."""
    complaint: str
    """Which lines were skipped; "" if none."""


def read_metric_lines(path: Path) -> MetricLines:
    """Read metrics.jsonl; no lines if there is no such file."""
    text = read_text(path, errors="replace") if path.is_file() else ""
    lines, skipped = [], []
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], 1):
        metrics = _metrics_of(line)
        if metrics is None:
            skipped.append((number, line))
        else:
            lines.append((line, metrics))
    return MetricLines(lines, _complaint(path, skipped))


def _metrics_of(line: str) -> dict[str, Any] | None:
    try:
        metrics = parse_json(line)
    except ValueError:
        return None
    if not isinstance(metrics, dict) or isinstance(metrics.get("step"), float | None):
        return None
    return metrics if all(_is_right(*field) for field in metrics.items()) else None


def _is_right(name: str, value: Any) -> bool:
    """True if a field holds what a run writes there."""
    if name in NUMBERS or name.startswith(("loss/", "added/")):
        return is_number(value)
    if name == "scores":
        return isinstance(value, dict) and all(map(are_numbers, value.values()))
    if name == "trainable" and value != {}:
        counts = ("total", "trainable", "percent")
        return isinstance(value, dict) and all(is_number(value.get(key)) for key in counts)
    return name != "bytes_per_rank" or are_numbers(value)


def _complaint(path: Path, skipped: list[tuple[int, str]]) -> str:
    if not skipped:
        return ""
    number, line = skipped[0]
    shown = line if len(line) <= SHOWN else f"{line[:SHOWN]}..."
    if len(skipped) == 1:
        return f"{path}: line {number} is skipped, it is not a line of metrics: {shown!r}"
    return (
        f"{path}: {len(skipped)} lines are skipped, they are not lines of metrics; the first is "
        f"line {number}: {shown!r}"
    )
