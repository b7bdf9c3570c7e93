"""The folders of a run's states: which exist, which are whole, and the progress of each.

    RUN/state/step-00000500/state.safetensors   fp32 masters and moments of the trainable weights
                            state.json          `Progress`
                            manifest.json       name -> size and sha256, written last

To resume, look through the folders, newest first; no file names the newest, because it could
disagree with the folders. The manifest holds the hash of state.json, which holds the step, which
the folder's name must repeat.

This module does not import torch, so that the supervisor can use it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vlds.runtime.artifact_files import Best
from vlds.runtime.disk import check_own
from vlds.runtime.files import read_file
from vlds.runtime.folders import STARTS
from vlds.runtime.json_files import damage, parse_record

RECIPE = "recipe.yaml"
"""A run's recipe, in its folder."""
TENSORS, PROGRESS = "state.safetensors", "state.json"
OF_RUN = re.compile(
    r"artifact|best|state|predictions|profile.*|tensorboard|metrics\.jsonl|starts\.jsonl|"
    r"data_errors-\d+\.jsonl|.*\.(log|txt|out|err|ya?ml)"
)
"""Names that a run's folder may have before its recipe is saved: of what runs write, and of logs
and recipes that users keep there."""
WRITTEN_AGAIN = ("artifact", "best")
NAME = re.compile(r"step-(\d{8,})")
Resume = Literal["auto"] | bool
"""Whether to resume the run in the output folder; "auto": if there is one."""


@dataclass(frozen=True)
class LossScale:
    """What fp16 multiplies the loss by, and what decides when that changes."""

    value: float
    steps: int
    """Steps so far, as `last_overflow` counts them."""
    last_overflow: int
    """The last step whose gradient was infinite at its scale; -1 if none was."""
    hysteresis: int
    """Such steps until the scale falls."""


@dataclass(frozen=True)
class Progress:
    """What a run has done so far."""

    format: Literal[2] = field(default=2, kw_only=True)
    """Changes when an older version of vlds could not read the folder."""
    step: int
    data: dict[str, Any]
    """The stream's own state."""
    skipped: int = 0
    """Steps that changed no weights, because loss or gradient was not finite."""
    best: Best | None = None
    sources: dict[str, str] = field(default_factory=dict)
    """sha256 of what the frozen weights come from."""
    task_updates: dict[str, int] = field(default_factory=dict)
    """Task -> updates of its own weights, in the order in which weights are stacked over tasks."""
    loss_scale: LossScale | None = None
    """Of a run in fp16 whose scale is not fixed."""


def name_of(step: int) -> str:
    """What the folder of a state is called."""
    return f"step-{step:08d}"


def state_folders(folder: Path) -> list[Path]:
    """All run states below `RUN/state`, oldest first, whole or not."""
    # By number, not by name: from step 100,000,000 on, names have nine digits.
    states = [path for path in folder.glob("step-*") if NAME.fullmatch(path.name)]
    return sorted(states, key=lambda path: int(path.name.removeprefix("step-")))


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest whole run state, and what is wrong with newer ones that were skipped."""
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
    """The progress of a whole state; ValueError that names the folder and what is wrong with it."""
    if (wrong := damage(folder, (TENSORS, PROGRESS))) is not None:
        raise ValueError(f"{folder}: {wrong}")
    try:
        progress = parse_record(Progress, read_file(folder / PROGRESS))
    except ValueError as error:
        raise ValueError(f"{folder}: {PROGRESS} cannot be read: {error}") from error
    if folder.name != name_of(progress.step):
        raise ValueError(f"{folder}: is the state of step {progress.step}; its folder was renamed")
    return progress


def check_output(output: str, resume: Resume, inputs: Iterable[str] = ()) -> None:
    """Errors: ValueError if a run would be overwritten, or mixed with other files or with its own
    `inputs`; if there is none to resume."""
    folder = Path(output)
    for name in inputs:
        # An input is a file, a folder, a hub name or a URL ("://").
        if "://" in name or not Path(name).exists():
            continue
        # Unlike Path.resolve, it takes a link to itself, which is refused further down.
        if Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(name)):
            raise ValueError(
                f"output: {output} lies in {name}, which the run reads; name another folder"
            )
        own = [Path(os.path.realpath(folder / part)) for part in WRITTEN_AGAIN]
        if any(Path(os.path.realpath(name)).is_relative_to(part) for part in own):
            raise ValueError(
                f"output: the run reads {name}, and would write it again; name another folder"
            )
    # An artifact has a recipe too; a run has also a list of its starts.
    if not (folder / RECIPE).is_file() or not (folder / STARTS).is_file():
        # Not a run yet: whatever else is in the folder is somebody's.
        check_own(folder, "output", OF_RUN, "a run")
    has_state = bool(state_folders(folder / "state"))
    if has_state and resume is False:
        raise ValueError(
            f"output: {output} holds a run already; add --resume to continue it, or name another "
            "folder"
        )
    if resume is True and not has_state:
        raise ValueError(
            f"--resume: {output} holds no run state; leave --resume out to start at step 0 (or "
            "say --resume auto, which resumes or starts), or name the run's folder as output"
        )
