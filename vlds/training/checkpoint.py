"""Run states, and the faults after which a run resumes from one: memory, disk, NaN.

A run state is everything that resuming needs, in one small folder (vlds/training/states.py
describes it), written in the background and verified on load. Restored: the fp32 masters and both
moments of the weights that train, buffers of a vision encoder that trains, AdamW's counts of steps,
and the stream's position. Derived from seed and step: the learning rate, the order of examples,
dropout (on a CPU also from the example; on a GPU from rank and micro-step). Begun again: the counts
of bad samples, and of steps in a row that are not finite.
"""

from __future__ import annotations

import errno
import json
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlds.data.streams.stream import MixedStream
from vlds.recipe.config import Recipe
from vlds.runtime.disk import ROOM, CannotWrite, system_error
from vlds.runtime.files import remove, sweep, whole_folder
from vlds.runtime.json_files import lacks_memory, write_manifest
from vlds.runtime.ranks import Ranks
from vlds.runtime.terminal import tell
from vlds.schema import Batch
from vlds.training.engine import Engine, Layout, State
from vlds.training.sinks import StepReport
from vlds.training.states import (
    PROGRESS,
    TENSORS,
    Best,
    Progress,
    Resume,
    model_changes,
    name_of,
    newest,
    read_progress,
    state_folders,
)

OTHER_OUTPUT = "or name another output"
NOT_WRITABLE = (*ROOM, errno.EROFS)
READS_TOO = (errno.EACCES, errno.EPERM, errno.EIO)
"""Errnos that reads raise too: blame the output folder only if the path is inside it."""
SHOWN_IDS = 5
USUAL_RATE = 1.0
"""Peak learning rates above it are mistakes of units: AdamW moves each weight by about the rate."""


def save(folder: Path, state: State, progress: Progress, keep: int) -> Path:
    """Write one run state below `folder`; then delete all but the newest `keep` and the best one.
    For the first rank alone.

    States of later steps go too: a resumed run has passed them over as damaged. Errors:
    CannotWrite; then nothing of the new state is left, and the others are untouched.
    """
    target = folder / name_of(progress.step)
    sweep(folder, alone=True)
    flat = {f"{name}|{key}": t.contiguous() for name, ts in state.items() for key, t in ts.items()}
    # If there is a folder of this step, it is damaged: a resumed run has passed it over.
    with whole_folder(target) as partial:
        save_file(flat, partial / TENSORS)
        (partial / PROGRESS).write_text(json.dumps(asdict(progress), indent=1), encoding="utf-8")
        write_manifest(partial)
    states = state_folders(folder)
    end = states.index(target) + 1
    best = name_of(progress.best.step) if progress.best else None
    for other in states[: max(0, end - keep)] + states[end:]:
        if other.name != best:
            remove(other)
    return target


def load(folder: Path) -> tuple[State, Progress]:
    """Read a run state; ValueError that names the folder and what is wrong with it."""
    progress = read_progress(folder)
    try:
        tensors = load_file(folder / TENSORS)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"{folder}: {TENSORS} cannot be read: {error}") from error
    return by_weight(tensors), progress


def saved_shapes(folder: Path) -> dict[str, torch.Size]:
    """Shape of each weight that trained when a run state was written."""
    with safe_open(folder / TENSORS, "pt") as file:
        masters = [name for name in file.keys() if name.endswith("|fp32")]  # noqa: SIM118
        shapes = {name: file.get_slice(name).get_shape() for name in masters}
    return {name.removesuffix("|fp32"): torch.Size(shape) for name, shape in shapes.items()}


def by_weight(tensors: Mapping[str, Tensor]) -> State:
    """The tensors of a file, whose names are WEIGHT|KEY."""
    state: State = {}
    for flat, tensor in tensors.items():
        name, _, key = flat.rpartition("|")
        state.setdefault(name, {})[key] = tensor
    return state


class RunStates:
    """Saves the states of a run, one after the other, while training continues."""

    def __init__(
        self, recipe: Recipe, engine: Engine, stream: MixedStream, sources: dict[str, str]
    ) -> None:
        """`sources`: hashes of the files that the frozen weights come from, on the first rank."""
        self.engine, self.stream, self.sources = engine, stream, sources
        self.folder = Path(recipe.output) / "state"
        self.keep = recipe.training.keep_states
        self.tasks = list(recipe.tasks)
        self.best: Best | None = None
        """The best evaluation so far: its state is kept."""
        self.newest_step: int | None = None
        """Step of the state that was saved or resumed last."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="state")
        self._writing: Future[Path] | None = None

    @property
    def failed(self) -> bool:
        """True if this rank could not write a state; then all ranks call `finish`."""
        writing = self._writing
        return writing is not None and writing.done() and writing.exception() is not None

    def save(self) -> float:
        """Gather the present state and begin to write it; returns the seconds for which training
        stood still. Collective; CannotWrite on the first rank if the previous write failed."""
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
            self._wait()
            self._writing = self._thread.submit(save, self.folder, state, progress, self.keep)
        return time.monotonic() - started

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def finish(self) -> None:
        """Wait until the last state is on disk. Collective; ValueError on all ranks otherwise."""
        problem = None
        try:
            self._wait()
        except CannotWrite as error:
            problem = cannot_write(error.path, error.refused, self.folder.parent)
        if problem := self.engine.ranks.broadcast(problem):
            raise ValueError(problem)

    def close(self) -> None:
        """Let a write end, without raising its error: the run reports another one."""
        self._thread.shutdown()


def find_state(recipe: Recipe, ranks: Ranks, resume: Resume) -> Path | None:
    """The newest whole state of the run to resume; None if the run starts at step 0. Collective.

    Errors: ValueError if there are states and all are damaged: starting would overwrite them.
    """
    if resume is False:
        return None
    folder = Path(recipe.output) / "state"
    result = (len(state_folders(folder)), *newest(folder)) if ranks.is_first else None
    num_states, state_folder, complaints = ranks.broadcast(result)
    if ranks.is_first:
        for complaint in complaints:
            tell(f"skipped a run state: {complaint}", flush=True)
        if state_folder is not None:
            tell(f"resuming from {state_folder}", flush=True)
        elif not num_states:
            tell(f"--resume auto: no run state in {folder}; starting at step 0", flush=True)
    if state_folder is None and num_states:
        raise ValueError(
            f"--resume: {folder} holds {num_states} run state(s), none of them whole "
            f"({complaints[0]}); move that folder away to start at step 0, {OTHER_OUTPUT}"
        )
    return Path(state_folder) if state_folder else None


def restore(recipe: Recipe, states: RunStates, ranks: Ranks, folder: Path, new_phase: bool) -> None:
    """Continue from a run state. Collective.

    Errors: ValueError if it is damaged, or belongs to another model, other data or other sources.
    """
    engine = states.engine
    state, progress = load(folder)
    if engine.has_task_weights and list(progress.task_updates) != states.tasks:
        # In another order, each slice of the stacked weights would go to another task.
        raise ValueError(
            f"--resume: {folder} has weights per task, of "
            f"{', '.join(progress.task_updates) or 'no task'}; the recipe's tasks are "
            f"{', '.join(states.tasks)}; resume with the same tasks in the same order, "
            f"{OTHER_OUTPUT}"
        )
    check_tensors(folder, state, engine.state_layout(), partial(model_changes, recipe))
    check_same_sources(recipe, folder, progress.sources, ranks.broadcast(states.sources))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            states.stream.load_state(progress.data, new_phase=new_phase)
        except ValueError as error:
            raise ValueError(f"--resume: {folder}: {error}") from error
    if ranks.is_first:
        for warning in caught:
            tell(f"resuming: {warning.message}", flush=True)
    # Tasks without weights of their own may have changed.
    task_updates = [progress.task_updates.get(task, 0) for task in states.tasks]
    engine.restore(state, progress.step, progress.skipped, task_updates)
    states.best, states.newest_step = progress.best, progress.step


def check_tensors(
    folder: Path, state: State, layout: Layout, changes: Callable[[], Sequence[str]] = tuple
) -> None:
    """`changes` tells those of the recipe since.

    Errors: ValueError that names the first tensor that differs from what the engine would save, or
    that holds NaN or infinity.
    """
    tensors = {(name, key): t for name, entry in state.items() for key, t in entry.items()}
    saved: Layout = {key: (tensor.dtype, tensor.shape) for key, tensor in tensors.items()}
    odd = [key for key in sorted(saved.keys() | layout.keys()) if saved.get(key) != layout.get(key)]
    if odd:
        what = f" ({'; '.join(told)})" if (told := changes()) else ""
        raise ValueError(
            f"--resume: {folder} is of another model than the recipe's{what}: they differ in "
            f"{len(odd)} tensor(s), such as {odd[0][1]!r} of {odd[0][0]!r} "
            f"({kind_of(saved.get(odd[0]))} in the state, {kind_of(layout.get(odd[0]))} in the "
            f"model); resume with the recipe that the run was started with, {OTHER_OUTPUT}"
        )
    for (name, key), tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(
                f"--resume: {folder}: {key} of {name} holds numbers that are NaN or infinite; "
                f"move that folder away to resume from the state before it, {OTHER_OUTPUT}"
            )


def kind_of(entry: tuple[torch.dtype, torch.Size] | None) -> str:
    """A tensor's type and shape in words."""
    if entry is None:
        return "absent"
    dtype, shape = entry
    return f"{str(dtype).removeprefix('torch.')} {' x '.join(map(str, shape)) or 'alone'}"


def check_same_sources(
    recipe: Recipe, folder: Path, saved: dict[str, str], present: dict[str, str]
) -> None:
    """Errors: ValueError that names the part of the model, or the tokenizer, whose files have
    changed since the run trained on them."""
    words, (place, _) = recipe.model.processor_word, recipe.model.processor_place
    places = {**recipe.model.sources, words: place}
    older = {words} - saved.keys()  # versions before that recorded no tokenizer
    for part in sorted((saved.keys() | present.keys()) - older):
        if saved.get(part) != present.get(part):
            then, now = (str(digests.get(part))[:12] for digests in (saved, present))
            raise ValueError(
                f"--resume: {folder} was trained on another {part} than "
                f"{places.get(part, 'the run that it names')} is now (sha256 {then} "
                f"then, {now} now); bring the original files back to that place, {OTHER_OUTPUT}"
            )


@contextmanager
def explained(recipe: Recipe) -> Iterator[None]:
    """Inside, a lack of memory or disk is a ValueError that says what to change."""
    try:
        yield
    except Exception as error:  # torch, Rust and Python have many classes for these
        run, refused, message = Path(recipe.output), system_error(error), None
        if lacks_memory(error):
            message = out_of_memory(recipe)
        elif refused is not None and isinstance(error, CannotWrite):
            if error.path.is_relative_to(run):
                message = cannot_write(error.path, refused, run)
        elif refused is not None:
            in_run = str(refused.filename).startswith(recipe.output)
            if refused.errno in NOT_WRITABLE or (refused.errno in READS_TOO and in_run):
                message = cannot_write(run, refused, run)
        if message is None:
            raise
        raise ValueError(message) from error


@contextmanager
def library_faults() -> Iterator[None]:
    """Inside, a ValueError of another library is a RuntimeError, which users see with its
    traceback: ValueErrors are for what they can correct."""
    try:
        yield
    except ValueError as error:
        frames = list(traceback.walk_tb(error.__traceback__))
        if str(frames[-1][0].f_globals.get("__name__")).partition(".")[0] == "vlds":
            raise
        raise RuntimeError(f"{type(error).__name__}: {error}") from error


def out_of_memory(recipe: Recipe) -> str:
    """Which keys make a run smaller: the cheapest first, without those that are set already."""
    data, training = recipe.data, recipe.training
    size = data.micro_batch_size
    now = f"now {size}" if size else "now a rank's whole share of data.global_batch_size"
    cures = [] if size == 1 else [f"lower data.micro_batch_size ({now}; results stay the same)"]
    recomputable = all(method.recomputable for method in recipe.methods.values())
    if not training.activation_checkpointing and data.parts == 1 and recomputable:
        cures.append("set training.activation_checkpointing to true")
    if "zero3" not in training.deepspeed:
        cures.append("set training.deepspeed to ds_configs/zero3.json, and start more ranks")
    if "offload" not in training.deepspeed and torch.cuda.is_available():
        cures.append("take its _offload variant")
    if data.eval_batch_size > 1:
        cures.append(f"in evaluation, lower data.eval_batch_size (now {data.eval_batch_size})")
    if not cures:
        cures.append("take a machine with more memory, or a smaller model")
    saved = Path(recipe.output) / "recipe.yaml"
    config = f"--config {saved}" if saved.is_file() else "RECIPE"
    return (
        f"out of memory; in this order: {'; '.join(cures)}. `vlds plan {config} --ranks N` says "
        f"what a rank holds then.{how_to_resume(Path(recipe.output))}"
    )


def how_to_resume(run: Path) -> str:
    """How to continue a run that has failed; empty if no state was saved."""
    if not state_folders(run / "state"):
        return ""
    return " What was saved is whole: --resume continues from it"


def cannot_write(path: Path, error: OSError, run: Path) -> str:
    """What to say if a run's folder takes no more files."""
    why = error.strerror or str(error)
    cure = "make room there" if error.errno in ROOM else "let this user write there"
    return (
        f"output: cannot write {path}: {why}; {cure}, or copy the run to another folder and name "
        f"that as output.{how_to_resume(run)}"
    )


class NonFiniteSteps:
    """Watches for steps whose loss or gradient is NaN or infinite. All ranks have one."""

    def __init__(self, recipe: Recipe, ranks: Ranks) -> None:
        self.recipe, self.ranks = recipe, ranks
        self._in_a_row = 0
        self._diverged = False
        """Steps were finite before these, so that training itself led there."""

    def after_step(self, step: int, report: StepReport, batches: Sequence[Batch]) -> list[str]:
        """What to say about a step. Collective if it was skipped, which all ranks know.

        Errors: ValueError on all ranks after `training.max_nonfinite_steps` of them in a row.
        """
        if not report.skipped:
            self._in_a_row = 0
            self._diverged = True
            return []
        self._in_a_row += 1
        ids = [id for batch in batches for id in batch.ids]
        gathered = self.ranks.gather((report.not_finite, ids))
        suspects = None
        if gathered is not None:
            # The examples whose own loss is not finite, or else all of the batch.
            not_finite = [id for rank_ids, _ in gathered for id in rank_ids]
            ids = not_finite or [id for _, rank_ids in gathered for id in rank_ids]
            more = f" and {len(ids) - SHOWN_IDS:,} more" if len(ids) > SHOWN_IDS else ""
            shown = ", ".join(ids[:SHOWN_IDS]) + more
            suspects = (
                f"the loss of {shown} is not finite" if not_finite else f"the batch held {shown}"
            )
        suspects = self.ranks.broadcast(suspects)
        if self._in_a_row <= self.recipe.training.max_nonfinite_steps:
            return [f"step {step} is skipped, its loss or gradient is NaN or infinite; {suspects}"]
        optimizer, training = self.recipe.optimizer, self.recipe.training
        rates = {"optimizer.learning_rate": optimizer.learning_rate} | {
            f"methods.{name}.learning_rate": method.learning_rate
            for name, method in self.recipe.methods.items()
            if method.learning_rate is not None
        }
        key, rate = max(rates.items(), key=lambda item: item[1])
        number = self._in_a_row
        how_often = f"{number} steps in a row, the last of them {step}, had"
        if number == 1:
            how_often = f"step {step} had"
        why = "a loss or gradient that is NaN or infinite"
        resume = how_to_resume(Path(self.recipe.output))
        if rate > USUAL_RATE:
            raise ValueError(
                f"{key}: got {rate:g}, and {how_often} {why}: at such a rate every step moves each "
                f"weight by about {rate:g}; give a rate far below 1, such as 0.001.{resume}"
            )
        cures = [f"lower {key} (now {rate:g})"]
        cures.append(f"{'lower' if optimizer.clip_norm else 'set'} optimizer.clip_norm")
        if training.precision != "fp32":
            cures.append("set training.precision to fp32")
        order = "; else look at the data of these examples"
        if self._diverged:
            order = f"{' or '.join(cures)}: the steps before were finite{order}"
        else:
            order = f"look at the data of these examples; else {' or '.join(cures)}"
        raise ValueError(
            f"training.max_nonfinite_steps: {how_often} {why}; {suspects}. "
            f"{order[0].upper()}{order[1:]}.{resume}"
        )
