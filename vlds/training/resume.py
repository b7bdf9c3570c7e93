"""A run and its states: what it starts from, and how it keeps what it has done."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import torch

from vlds.config import Recipe
from vlds.data.streams.mixed_stream import MixedStream
from vlds.runtime.disk import CannotWrite
from vlds.runtime.ranks import Ranks
from vlds.runtime.terminal import tell
from vlds.training import checkpoint
from vlds.training.checkpoint import StateWriter
from vlds.training.engine import Engine, Layout, State
from vlds.training.faults import cannot_write
from vlds.training.states import Best, Progress, Resume, newest, state_folders


def find_state(recipe: Recipe, ranks: Ranks, resume: Resume) -> Path | None:
    """The newest whole state of the run to go on with; None where a new one is to start.
    Collective.

    Errors: ValueError where there are states and none of them is whole: what was done is not thrown
    away unasked.
    """
    if resume is False:
        return None
    folder = Path(recipe.output) / "state"
    seen = (state_folders(folder), *newest(folder)) if ranks.is_first else None
    folders: list[Path]
    found: Path | None
    folders, found, complaints = ranks.broadcast(seen)
    if ranks.is_first:
        for complaint in complaints:
            tell(f"passed over a run state: {complaint}", flush=True)
        if found is None and not folders:
            tell(f"--resume auto: no run state in {folder}; starting anew", flush=True)
        elif found is not None:
            tell(f"resuming from {found}", flush=True)
    if found is None and folders:
        raise ValueError(
            f"--resume: {folder} holds {len(folders)} run state(s), none of them whole "
            f"({complaints[0]}); move that folder away to start anew, or name another output"
        )
    return found


class RunStates:
    """Saves the states of a run while it goes on."""

    def __init__(
        self, recipe: Recipe, engine: Engine, stream: MixedStream, sources: dict[str, str]
    ) -> None:
        """`sources`: hashes of what the frozen weights come from, on the first rank."""
        self.engine, self.stream, self.sources = engine, stream, sources
        self.folder = Path(recipe.output) / "state"
        self.tasks = list(recipe.tasks)
        self.best: Best | None = None
        """The best evaluation so far: its state is kept."""
        self.newest_step: int | None = None
        """Step of the state that was saved last, or gone on from."""
        self._writer = StateWriter(self.folder, recipe.training.keep_states)

    @property
    def failed(self) -> bool:
        """Whether this rank could not write a state; then all call `finish`."""
        return self._writer.failed

    def save(self) -> float:
        """Gather the state as it is now and begin to write it; the seconds that training stood
        still. Collective.

        Errors: CannotWrite on the first rank, where the state before could not be written.
        """
        started = time.monotonic()
        self.newest_step = self.engine.steps_done
        state = self.engine.export()
        if state is not None:
            progress = Progress(
                step=self.engine.steps_done,
                data=self.stream.state(),
                skipped=self.engine.steps_skipped,
                best=self.best,
                sources=self.sources,
                task_updates=dict(zip(self.tasks, self.engine.task_updates, strict=True)),
            )
            self._writer.write(state, progress)
        return time.monotonic() - started

    def finish(self) -> None:
        """Wait until the last state is on disk. Collective.

        Errors: ValueError on all ranks where that cannot be done.
        """
        problem = None
        try:
            self._writer.wait()
        except CannotWrite as error:
            problem = cannot_write(error.path, error.refused, self.folder.parent)
        if problem := self.engine.ranks.broadcast(problem):
            raise ValueError(problem)

    def close(self) -> None:
        """Let a write that goes on come to its end."""
        self._writer.close()


def restore(recipe: Recipe, states: RunStates, ranks: Ranks, found: Path, new_phase: bool) -> None:
    """Go on from a run state. Collective.

    Errors: ValueError where it is damaged, or of another model, other data or other sources.
    """
    engine, stream = states.engine, states.stream
    state, progress = checkpoint.load(found)
    if engine.has_task_weights:
        check_tasks(found, list(progress.task_updates), states.tasks)
    check_tensors(found, state, engine.state_layout())
    check_sources(recipe, found, progress.sources, ranks.broadcast(states.sources))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            stream.load_state(progress.data, new_phase=new_phase)
        except ValueError as error:
            raise ValueError(f"--resume: {found}: {error}") from error
    if ranks.is_first:
        for warning in caught:
            tell(f"resuming: {warning.message}", flush=True)
    # Tasks without weights of their own may have changed.
    task_updates = [progress.task_updates.get(task, 0) for task in states.tasks]
    engine.restore(state, progress.step, progress.skipped, task_updates)
    states.best, states.newest_step = progress.best, progress.step


def check_tasks(found: Path, saved: list[str], present: list[str]) -> None:
    """Compare the tasks of a state with those of the recipe, where weights are stacked over them.

    Errors: ValueError where the names or their order differ: slices would change hands.
    """
    if saved != present:
        raise ValueError(
            f"--resume: {found} has weights per task, of {', '.join(saved) or 'no task'}; the "
            f"recipe's tasks are {', '.join(present)}; resume with the same tasks in the same "
            "order, or name another output"
        )


def check_tensors(found: Path, state: State, layout: Layout) -> None:
    """Compare a state's tensors with those that the engine would save.

    Errors: ValueError that names the first one that differs, or whose numbers are not finite.
    """
    saved: Layout = {
        (name, key): (tensor.dtype, tensor.shape)
        for name, tensors in state.items()
        for key, tensor in tensors.items()
    }
    odd = [key for key in sorted(saved.keys() | layout.keys()) if saved.get(key) != layout.get(key)]
    if odd:
        raise ValueError(
            f"--resume: {found} is of another model than the recipe's: they differ in {len(odd)} "
            f"tensor(s), such as {' of '.join(map(repr, reversed(odd[0])))} "
            f"({kind_of(saved.get(odd[0]))} in the state, {kind_of(layout.get(odd[0]))} in the "
            "model); resume with the recipe that the run was started with, or name another output"
        )
    for name, tensors in state.items():
        for key, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise ValueError(
                    f"--resume: {found}: {key} of {name} holds numbers that are NaN or infinite; "
                    "move that folder away to go on from the state before it, or name another "
                    "output"
                )


def kind_of(entry: tuple[torch.dtype, torch.Size] | None) -> str:
    """A tensor's type and shape in words."""
    if entry is None:
        return "absent"
    dtype, shape = entry
    return f"{str(dtype).removeprefix('torch.')} {' x '.join(map(str, shape)) or 'alone'}"


def check_sources(
    recipe: Recipe, found: Path, saved: dict[str, str], present: dict[str, str]
) -> None:
    """Compare the frozen weights' files with those that the run has trained on.

    Errors: ValueError that names the part and its place.
    """
    for part in sorted(saved.keys() | present.keys()):
        if saved.get(part) != present.get(part):
            then, now = (str(digests.get(part))[:12] for digests in (saved, present))
            raise ValueError(
                f"--resume: {found} was trained on another {part} than "
                f"{recipe.model.sources.get(part)} is now (sha256 {then} then, {now} now); bring "
                "the original files back to that place, or name another output"
            )
