"""Names in a run folder, and its record of starts, which training writes and a report reads."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from vlds.runtime.disk import append
from vlds.runtime.json_record import parse_record
from vlds.runtime.regular_file import read_text

PREDICTIONS = "predictions"
BLANK = "blank"
"""Folder of predictions that were made from blank pictures."""
STEP = re.compile(r"step-(\d+)")
"""Folder of the predictions of an evaluation during training."""
STARTS = "starts.jsonl"
PACKAGES = ("vlds", "torch", "deepspeed", "transformers")
CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Start:
    """One start of a run: the first, or one that resumed it."""

    time: str
    """UTC, in seconds: "2026-03-01T12:00:00+00:00"."""
    step: int
    """Steps done before this start."""
    command: str
    hardware: str
    versions: Mapping[str, str]
    changes: Sequence[str] = field(default_factory=list)
    """Changes of the recipe since the start before, such as "optimizer.eps: 1e-06 -> 1e-08"."""

    def __post_init__(self) -> None:
        datetime.fromisoformat(self.time)


def newest_step(predictions: Path) -> int | None:
    """Steps of training before its newest evaluation whose predictions are below a folder; None
    where there are none."""
    found = (STEP.fullmatch(path.name) for path in predictions.glob("step-*"))
    return max((int(match[1]) for match in found if match), default=None)


def new_start(step: int, command: str, hardware: str, changes: Sequence[str]) -> Start:
    """Describe a start that happens now."""
    versions = {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}
    time = datetime.now(UTC).isoformat(timespec="seconds")
    return Start(time, step, command, hardware, versions, list(changes))


def add_start(run: Path, start: Start) -> None:
    """Record a start, on disk when this returns.

    Errors: CannotWrite.
    """
    append(run / STARTS, json.dumps(asdict(start)) + "\n")


def read_starts(run: Path) -> list[Start]:
    """The starts of a run. Damaged lines are skipped: the record never stops a report."""
    file = run / STARTS
    text = read_text(file, errors="replace") if file.is_file() else ""
    starts = []
    for line in text.split("\n"):
        with suppress(ValueError):
            starts.append(parse_record(Start, line))
    return starts


def cpu_name() -> str:
    """Model of the processor, and the number of cores that this process may use."""
    lines = CPU_INFO.read_text("utf-8", "replace").split("\n") if CPU_INFO.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0))
    return f"{names[0] if names else platform.machine()}, {cores} core{'s' * (cores > 1)}"
