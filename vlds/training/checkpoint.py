"""Run state: everything that resuming needs, in one small folder, written atomically and verified
on load.

    RUN/state/step-00000500/state.safetensors   fp32 masters and moments of the trainable weights
                            state.json          step, position in the order of examples, seed
                            manifest.json       name -> size and sha256, written last

A folder without a whole manifest does not exist for `newest`. Dropout is a function of (seed,
step, rank) and the order of examples one of (seed, position), so no generator states are kept, and
any number of ranks may resume.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from vlds.manifest import damage, sync, write_manifest

State = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    step: int
    data: dict[str, Any]
    """The stream's own state."""


def save(folder: Path, state: State, progress: Progress, keep: int) -> Path:
    """Write one run state below `folder`; then delete all but `keep`. For the first rank alone.

    States of later steps are those that a resumed run passed over as damaged: they go too.
    """
    target = folder / f"step-{progress.step:08d}"
    partial = folder / f".{target.name}.partial"
    for unfinished in folder.glob(".step-*.partial"):
        shutil.rmtree(unfinished)
    partial.mkdir(parents=True)
    flat = {
        f"{name}|{key}": t.contiguous() for name, entry in state.items() for key, t in entry.items()
    }
    save_file(flat, partial / "state.safetensors")
    text = json.dumps({"step": progress.step, "data": progress.data}, indent=1)
    (partial / "state.json").write_text(text, encoding="utf-8")
    write_manifest(partial)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)
    sync(folder)
    states = sorted(folder.glob("step-*"))
    place = states.index(target)
    for other in states[: max(0, place + 1 - keep)] + states[place + 1 :]:
        shutil.rmtree(other)
    return target


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest whole run state, and what is wrong with newer ones that had to be passed over."""
    complaints: list[str] = []
    for candidate in sorted(folder.glob("step-*"), reverse=True):
        wrong = damage(candidate)
        if wrong is None:
            return candidate, complaints
        complaints.append(f"{candidate}: {wrong}")
    return None, complaints


def load(folder: Path) -> tuple[State, Progress]:
    """Read a whole run state."""
    state: State = {}
    for flat, tensor in load_file(folder / "state.safetensors").items():
        name, key = flat.rsplit("|", 1)
        state.setdefault(name, {})[key] = tensor
    raw = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    return state, Progress(step=raw["step"], data=raw["data"])
