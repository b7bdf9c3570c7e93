"""Run state: everything that resuming needs, in one small folder, written atomically, in the
background, and verified on load.

The folder is that of vlds/training/states.py; `state.safetensors` holds the fp32 masters and
moments of the trainable weights. Dropout is a function of (seed, step, rank) and the order of
examples one of (seed, position), so there are no generator states, and any number of ranks may
resume.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlds.runtime.half_made import remove, sweep
from vlds.runtime.manifest import write_manifest
from vlds.runtime.whole_file import whole_folder
from vlds.training.states import (
    FORMAT,
    PROGRESS,
    TENSORS,
    Progress,
    name_of,
    read_progress,
    state_folders,
)

State = dict[str, dict[str, Tensor]]


def save(folder: Path, state: State, progress: Progress, keep: int) -> Path:
    """Write one run state below `folder`; then delete all but the newest `keep` and the best one.
    For the first rank alone.

    States of later steps are those that a resumed run passed over as damaged: they go too. Errors:
    CannotWrite where it cannot be written; nothing is left of it then, and nothing else is touched.
    """
    target = folder / name_of(progress.step)
    sweep(folder, alone=True)
    # A state of this step is there only where a resumed run has passed it over: it is damaged.
    with whole_folder(target) as partial:
        _write(partial, state, progress)
    states = state_folders(folder)
    place = states.index(target)
    best = name_of(progress.best.step) if progress.best else None
    for other in states[: max(0, place + 1 - keep)] + states[place + 1 :]:
        if other.name != best:
            remove(other)
    return target


def _write(folder: Path, state: State, progress: Progress) -> None:
    flat = {
        f"{name}|{key}": t.contiguous() for name, entry in state.items() for key, t in entry.items()
    }
    save_file(flat, folder / TENSORS)
    text = json.dumps({"format": FORMAT, **asdict(progress)}, indent=1)
    (folder / PROGRESS).write_text(text, encoding="utf-8")
    write_manifest(folder)


def load(folder: Path) -> tuple[State, Progress]:
    """Read a run state.

    Errors: ValueError that names the folder and what is wrong with it.
    """
    progress = read_progress(folder)
    try:
        tensors = load_file(folder / TENSORS)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"{folder}: {TENSORS} cannot be read: {error}") from error
    return by_weight(tensors), progress


def by_weight(tensors: Mapping[str, Tensor]) -> State:
    """The tensors of a file, whose names are WEIGHT|KEY."""
    state: State = {}
    for flat, tensor in tensors.items():
        name, _, key = flat.rpartition("|")
        state.setdefault(name, {})[key] = tensor
    return state


class StateWriter:
    """Writes run states in a thread of its own, one after the other. For the first rank alone."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="state")
        self._writing: Future[Path] | None = None

    def write(self, state: State, progress: Progress) -> None:
        """Begin to write, once the state before is on disk.

        Errors: CannotWrite of the state before.
        """
        self.wait()
        self._writing = self._thread.submit(save, self.folder, state, progress, self.keep)

    @property
    def failed(self) -> bool:
        """Whether a write has ended with an error, which `wait` raises."""
        writing = self._writing
        return writing is not None and writing.done() and writing.exception() is not None

    def wait(self) -> None:
        """Until nothing is left to write.

        Errors: CannotWrite where that could not be written.
        """
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def close(self) -> None:
        """Let a write come to its end, whether well or not: the run has something else to say."""
        self._thread.shutdown()
