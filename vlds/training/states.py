"""The folders of a run's states: which there are, which of them are whole, how far each one is.

    RUN/state/step-00000500/state.safetensors   tensors: vlds/training/checkpoint.py
                            state.json          `Progress`
                            manifest.json       name -> size and sha256, written last

Whoever resumes looks through the folders, newest first. There is no file that names the newest one:
it could only disagree with them. A state is bound to its step three times over: the manifest holds
the hash of state.json, which holds the step, which the folder's name must repeat.

Without torch, so that the supervisor can look as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vlds.runtime.json_file import read_json
from vlds.runtime.manifest import damage

TENSORS, PROGRESS = "state.safetensors", "state.json"
FORMAT = 2
"""Of the folder; it changes when an older version of vlds could not read a new one."""
NAME = re.compile(r"step-(\d{8,})")


Resume = Literal["auto"] | bool
"""Whether to go on with the run in the output folder; "auto": if there is one."""


@dataclass(frozen=True)
class Best:
    """The best evaluation so far."""

    step: int
    score: str
    """Which of the scores it is."""
    value: float


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    step: int
    data: dict[str, Any]
    """The stream's own state."""
    skipped: int = 0
    """Steps that changed no weights, because loss or gradient was not finite."""
    best: Best | None = None
    """The best evaluation, where there has been one."""
    sources: dict[str, str] = field(default_factory=dict)
    """sha256 of what the frozen weights come from."""
    task_updates: dict[str, int] = field(default_factory=dict)
    """Task -> updates of its own weights, in the order in which weights are stacked over tasks."""


def name_of(step: int) -> str:
    """What the folder of a state is called."""
    return f"step-{step:08d}"


def state_folders(folder: Path) -> list[Path]:
    """All run states below `RUN/state`, oldest first, whole or not; other files are nobody's."""
    found = {int(m[1]): path for path in folder.glob("step-*") if (m := NAME.fullmatch(path.name))}
    return [found[step] for step in sorted(found)]


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest whole run state, and what is wrong with newer ones that had to be passed over."""
    complaints: list[str] = []
    for candidate in reversed(state_folders(folder)):
        try:
            read_progress(candidate)
        except ValueError as error:
            complaints.append(str(error))
        else:
            return candidate, complaints
    return None, complaints


def read_progress(folder: Path) -> Progress:
    """How far a state is, once all of its files are what was written.

    Errors: ValueError that names the folder and what is wrong with it.
    """
    if (wrong := damage(folder, (TENSORS, PROGRESS))) is not None:
        raise ValueError(f"{folder}: {wrong}")
    try:
        progress = progress_from(read_json(folder / PROGRESS))
    except ValueError as error:
        raise ValueError(f"{folder}: {PROGRESS} cannot be read: {error}") from error
    if folder.name != name_of(progress.step):
        raise ValueError(f"{folder}: is the state of step {progress.step}; its folder was renamed")
    return progress


def progress_from(raw: Any) -> Progress:
    """What `dataclasses.asdict` made of a `Progress`, with `format` beside it.

    Errors: ValueError that says what is not as it was written.
    """
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise ValueError(f"it is not of format {FORMAT}, which this version of vlds reads")
    kinds = {"step": int, "data": dict, "skipped": int, "sources": dict, "task_updates": dict}
    best = None if raw.get("best") is None else best_from(raw["best"])
    rest = {name: value for name, value in raw.items() if name not in ("format", "best")}
    progress = Progress(**checked(rest, kinds), best=best)
    if not 0 <= progress.skipped <= progress.step:
        raise ValueError(f"skipped is {progress.skipped}, of {progress.step} steps")
    updates = progress.step - progress.skipped
    for task, own in progress.task_updates.items():
        if type(own) is not int or not 0 <= own <= updates:
            raise ValueError(f"task_updates.{task} is {own!r}, of {updates} updates")
    return progress


def best_from(raw: Any) -> Best:
    """What `dataclasses.asdict` made of a `Best`.

    Errors: ValueError that says what is not as it was written.
    """
    return Best(**checked(raw, {"step": int, "score": str, "value": (int, float)}))


def checked(raw: Any, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """The values of some JSON object, which are just these.

    Errors: ValueError that names a value of another type, one too many or one that lacks.
    """
    if not isinstance(raw, dict) or raw.keys() != kinds.keys():
        raise ValueError(f"got {sorted(raw) if isinstance(raw, dict) else raw!r}, not {[*kinds]}")
    for name, kind in kinds.items():
        if not isinstance(raw[name], kind) or isinstance(raw[name], bool):
            raise ValueError(f"{name} is {raw[name]!r}")
    return raw


def check_output(output: Path, resume: Resume) -> None:
    """Compare what a run's folder holds with what is asked for.

    Errors: ValueError where a run would be overwritten, or there is none to go on with.
    """
    has_state = bool(state_folders(output / "state"))
    if has_state and resume is False:
        raise ValueError(
            f"output: {output} holds a run already; add --resume to go on with it, or name "
            "another folder"
        )
    if resume is True and not has_state:
        raise ValueError(
            f"--resume: {output} holds no run state; leave --resume out to start anew (or "
            "say --resume auto, which goes on or starts), or name the run's folder as output"
        )
