"""How metrics.jsonl is read, by a run that goes on and by a report alike.

A line counts if it is an object with a whole `step`, and what else it has of the fields that a
report shows has their types. All others are passed over and told: what only tells about a run never
stops one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlds.runtime.checks import are_numbers, is_number
from vlds.runtime.json_file import parse_json
from vlds.runtime.regular_file import read_text

SHOWN = 40
"""Characters of a line that a complaint shows."""


@dataclass(frozen=True)
class MetricLines:
    """What a file holds."""

    lines: list[tuple[str, dict[str, Any]]]
    """Each line that counts, as text and as what it says."""
    complaint: str
    """Which lines do not count; "" where all do."""


def read_metric_lines(path: Path) -> MetricLines:
    """Read metrics.jsonl; nothing where there is no such file."""
    text = read_text(path, errors="replace") if path.is_file() else ""
    lines, odd = [], []
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], 1):
        metrics = _metrics_of(line)
        if metrics is None:
            odd.append((number, line))
        else:
            lines.append((line, metrics))
    return MetricLines(lines, _complaint(path, odd))


def _metrics_of(line: str) -> dict[str, Any] | None:
    try:
        metrics = parse_json(line)
    except ValueError:
        return None
    if not isinstance(metrics, dict) or isinstance(metrics.get("step"), float | None):
        return None
    return metrics if all(_is_right(*field) for field in metrics.items()) else None


def _is_right(name: str, value: Any) -> bool:
    """Whether a field holds what a run writes there."""
    if name in ("step", "samples_per_second", "seconds", "loss") or name.startswith("loss/"):
        return is_number(value)
    if name == "scores":
        return isinstance(value, dict) and all(map(are_numbers, value.values()))
    if name == "trainable":
        return value == {} or are_weights(value)
    return name != "bytes_per_rank" or are_numbers(value)


def are_weights(counts: Any) -> bool:
    """True for the numbers of weights of a model: total, trainable, percent."""
    names = ("total", "trainable", "percent")
    return isinstance(counts, dict) and all(is_number(counts.get(name)) for name in names)


def _complaint(path: Path, odd: list[tuple[int, str]]) -> str:
    if not odd:
        return ""
    number, line = odd[0]
    shown = line if len(line) <= SHOWN else f"{line[:SHOWN]}..."
    if len(odd) == 1:
        return f"{path}: line {number} is passed over, it is not a line of metrics: {shown!r}"
    return (
        f"{path}: {len(odd)} lines are passed over, they are not lines of metrics; the first is "
        f"line {number}: {shown!r}"
    )
