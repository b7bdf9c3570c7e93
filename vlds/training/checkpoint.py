"""Run states, what has changed when one is resumed, and the artifact of the best step.

A run state is everything that resuming needs, in one small folder (vlds/training/states.py
describes it), written in the background and verified on load. Restored: the fp32 masters and both
moments of the weights that train, buffers of a vision encoder that trains, AdamW's counts of steps,
and the stream's position. Derived from seed and step: the learning rate, the order of examples,
dropout (on a CPU also from the example; on a GPU from rank and micro-step). Begun again: the counts
of bad samples, and of steps in a row that are not finite.
"""

from __future__ import annotations

import json
import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict
from functools import partial
from math import isnan, nan
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlds.data.order.epoch_order import differences
from vlds.data.streams.stream import MixedStream, invalid_state
from vlds.evaluation.evaluator import Evaluator
from vlds.evaluation.result import Evaluation
from vlds.models.loading.model_files import reading
from vlds.recipe.build import to_tree
from vlds.recipe.config import Recipe, load_recipe
from vlds.recipe.paths import renamed
from vlds.runtime.artifact_files import BEST, WEIGHTS, Best
from vlds.runtime.disk import CannotWrite
from vlds.runtime.files import finish_replacing, read_file, remove, sweep, whole_folder
from vlds.runtime.folders import read_starts
from vlds.runtime.json_files import damage, parse_record, write_manifest
from vlds.runtime.ranks import Ranks
from vlds.runtime.terminal import tell
from vlds.training.engine import Engine, Layout, State
from vlds.training.faults import cannot_write
from vlds.training.states import (
    PROGRESS,
    RECIPE,
    TENSORS,
    Progress,
    Resume,
    name_of,
    newest,
    read_progress,
    state_folders,
)

OTHER_OUTPUT = "or name another output"
AFTER_TRAINING = re.compile(
    r"(tracking|training\.(steps|evaluate_whole|collective_timeout)|data\.(cache|cache_bytes|num_workers|"
    r"eval_batch_size)|tasks\..+\.init_args\.(evaluate|test|decoding|headline))\b"
)
"""Keys that do not say how the weights came about: they may change where no step is left. So may
the number of steps, by which a run ends at the step that it has reached."""


def save(folder: Path, state: State, progress: Progress, keep: int) -> Path:
    """Write one run state below `folder`; then delete all but the newest `keep` and the best one.
    For the first rank alone.

    States of later steps go too: a resumed run has passed them over as damaged. Errors:
    CannotWrite; then nothing of the new state is left, and the others are untouched.
    """
    target = folder / name_of(progress.step)
    sweep(folder, alone=True)  # what an interrupted write has left
    # safetensors has one level of names, and refuses views that are not contiguous.
    flat = {f"{name}|{key}": t.contiguous() for name, ts in state.items() for key, t in ts.items()}
    # If there is a folder of this step, it is damaged: a resumed run has passed it over.
    with whole_folder(target) as partial:
        save_file(flat, partial / TENSORS)
        # Without fields that this run has no use for, which older versions may not know.
        record = {key: value for key, value in asdict(progress).items() if value is not None}
        (partial / PROGRESS).write_text(json.dumps(record, indent=1), encoding="utf-8")
        write_manifest(partial)
    # Only now that the new state is whole may older ones go.
    # [100, 200, 300, 900] after saving 300 with keep 2: end is 3, so 100 goes, and 900, which the
    # resumed run has passed over.
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
    with reading_tensors(folder):
        tensors = load_file(folder / TENSORS)
    return by_weight(tensors), progress


def reading_tensors(folder: Path) -> AbstractContextManager[None]:
    """Inside, errors over a state's tensors are ValueErrors that name it."""
    return reading(
        f"{folder}: {TENSORS} cannot be read", "remove the folder to resume from the state before"
    )


def saved_shapes(folder: Path) -> dict[str, torch.Size]:
    """Shape of each weight that trained when a run state was written. Errors: as in `load`."""
    with reading_tensors(folder), safe_open(folder / TENSORS, "pt") as file:
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
        # A copy, so that training may go on while the thread writes it; on the first rank only.
        state = self.engine.export()
        if state is not None:
            progress = Progress(
                step=self.engine.steps_done,
                data=self.stream.state(),
                skipped=self.engine.steps_skipped,
                best=self.best,
                sources=self.sources,
                task_updates=dict(zip(self.tasks, self.engine.task_updates, strict=True)),
                loss_scale=self.engine.loss_scale,
            )
            self._wait()  # one write at a time; raises if the one before has failed
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
    # The first rank looks for all: on a network's file system others may see an older list.
    folder = Path(recipe.output) / "state"
    result = (len(state_folders(folder)), *newest(folder)) if ranks.is_first else None
    num_states, state_folder, complaints = ranks.broadcast(result)
    if ranks.is_first:
        for complaint in complaints:
            tell(f"skipped a run state: {complaint}", flush=True)
        if state_folder is not None:
            tell(f"resuming from {state_folder}", flush=True)
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
    # Each step reads a global batch, whose size may have changed: with the mixture, or as a start
    # of the run says.
    lines = [line for start in read_starts(folder.parents[1]) for line in start.changes]
    stream, step = states.stream, progress.step
    size = progress.data["global_batch_size"]
    expected = step * (size if stream.order.batch_sizes is None else stream.order.stride)
    resized = stream.order.phase.at > 0 or any("batch_size" in line for line in lines)
    if stream.consumed < step or not (resized or stream.consumed == expected):
        raise ValueError(
            f"--resume: {folder}: {invalid_state('consumed', f'{stream.consumed} at step {step}')}"
        )
    if ranks.is_first:
        for warning in caught:
            tell(f"resuming: {warning.message}", flush=True)
    # Without weights per task, the recipe may have other tasks than the state.
    task_updates = [progress.task_updates.get(task, 0) for task in states.tasks]
    engine.restore(state, progress.step, progress.skipped, task_updates, progress.loss_scale)
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


def recipe_changes(recipe: Recipe, *, places: bool = True) -> list[str]:
    """A line for each key whose value differs from that in the run's folder, except `output`: a run
    may move. `places`: also where files are.

    Errors: OSError or ValueError if the saved recipe cannot be read.
    """
    before = load_recipe(Path(recipe.output) / RECIPE)
    trees: list[Mapping[str, object]] = [to_tree(before), to_tree(recipe)]
    if not places:
        trees = [renamed(tree, Recipe, lambda *file: None) for tree in trees]
    old, new = ({k: v for k, v in tree.items() if k != "output"} for tree in trees)
    return differences(old, new)


def check_ended(recipe: Recipe, ranks: Ranks) -> None:
    """Errors: ValueError if a recipe says otherwise than the saved one how a run was trained that
    has no step left: none would be done so. Collective."""
    changes: list[str] = []
    if ranks.is_first:
        with suppress(OSError, ValueError):  # `write_start` says that it cannot be read
            changes = recipe_changes(recipe, places=False)
    changes = [line for line in ranks.broadcast(changes) if not AFTER_TRAINING.match(line)]
    if changes:
        raise ValueError(
            f"--resume: {changes[0]}, but all {recipe.training.num_steps:,} steps of the run in "
            f"{recipe.output} are done; leave that as it was, raise training.steps, {OTHER_OUTPUT}"
        )


def model_changes(recipe: Recipe) -> list[str]:
    """The lines about the model and its methods; none if the saved recipe cannot be read."""
    try:
        changes = recipe_changes(recipe)
    except (OSError, ValueError):
        return []
    return [line for line in changes if line.startswith(("model.", "methods."))]


def check_best(best: str, evaluator: Evaluator) -> bool:
    """True if the lowest value of this score is the best. Collective.

    Errors: ValueError if the evaluation does not compute it; names the scores that it does.
    """
    task, score = check_best_task(best, evaluator.tasks)
    names = evaluator.score_names(task)
    if score not in names:
        known = ", ".join(f"{task}/{name}" for name in names) or "none: its data have no labels"
        raise ValueError(f"training.best: got {best!r}; the scores of {task} are {known}")
    return evaluator.recipe.tasks[task].is_low(score)


def check_best_task(best: str, tasks: Sequence[str]) -> tuple[str, str]:
    """Task and score that `training.best` names; ValueError if the task is not evaluated."""
    task, _, score = best.partition("/")
    if task not in tasks:
        raise ValueError(
            f"training.best: got {best!r}; give TASK/SCORE with one of the tasks that are "
            f"evaluated: {', '.join(tasks) or 'none has data in `evaluate`'}"
        )
    return task, score


class BestStep:
    """The best value of one score, and the artifact of its step. All ranks have one; the first
    rank's knows the value.

    RUN/best is an artifact like RUN/artifact, which is the last step's. It holds best.json, the
    score and the step, so that they change together. If it is damaged, a resumed run says so and
    looks for the best step from there on.
    """

    def __init__(
        self, name: str, folder: Path, *, resumed: bool, lower_is_better: bool = False
    ) -> None:
        """`name`: TASK/SCORE. `resumed`: read what the run has found before; on the first rank
        alone."""
        self.name, self.folder, self.sign = name, folder, -1 if lower_is_better else 1
        self.known = self._read() if resumed else None

    def _read(self) -> Best | None:
        # A run that was killed while it replaced the folder may have left it under another name.
        finish_replacing(self.folder)
        if not self.folder.is_dir():
            return None
        wrong = damage(self.folder, (BEST, WEIGHTS))
        if wrong is None:
            try:
                best = parse_record(Best, read_file(self.folder / BEST))
                return best if best.score == self.name else None
            except ValueError as error:
                wrong = f"{BEST} cannot be read ({error})"
        tell(
            f"training.best: {self.folder} is skipped: {wrong}; the run looks for the best "
            "step from here on",
            flush=True,
        )
        return None

    def better(self, evaluations: Sequence[Evaluation], step: int) -> float | None:
        """The value of a step's evaluations if it is the best so far, else None.

        A repeated step was interrupted, perhaps before its artifact was whole: an equal value is
        enough for it.
        """
        task, _, score = self.name.partition("/")
        scores = next((e.scores for e in evaluations if e.task == task), {})
        value, known = scores.get(score, nan), self.known
        if isnan(value):
            return None
        if known is None or isnan(known.value) or self.sign * (value - known.value) > 0:
            return value
        return value if (step, value) == (known.step, known.value) else None

    def note(self, value: float, step: int) -> dict[str, str]:
        """Remember this step; returns what its artifact holds besides, file name -> text."""
        self.known = Best(step, self.name, value)
        return {BEST: json.dumps(asdict(self.known)) + "\n"}
