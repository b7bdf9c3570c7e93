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

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isnan, nan
from pathlib import Path
from typing import Any, Literal

from vlds.artifact import WEIGHTS
from vlds.data.order.epoch_order import differences
from vlds.evaluation.evaluator import Evaluator
from vlds.evaluation.result import Evaluation
from vlds.recipe.config import Recipe, load_recipe, to_tree
from vlds.runtime.disk import check_own
from vlds.runtime.files import finish_replacing, read_file
from vlds.runtime.json_files import damage, parse_record
from vlds.runtime.terminal import tell

RECIPE = "recipe.yaml"
"""A run's recipe, in its folder."""
BEST = "best.json"
TENSORS, PROGRESS = "state.safetensors", "state.json"
OF_RUN = re.compile(
    r"artifact|best|state|predictions|profile.*|tensorboard|metrics\.jsonl|starts\.jsonl|"
    r"data_errors-\d+\.jsonl|.*\.(log|txt|out|err|ya?ml)"
)
"""Names that a run's folder may have before its recipe is saved: of what runs write, and of logs
and recipes that users keep there."""
NAME = re.compile(r"step-(\d{8,})")
Resume = Literal["auto"] | bool
"""Whether to resume the run in the output folder; "auto": if there is one."""


def recipe_changes(recipe: Recipe) -> list[str]:
    """A line for each key whose value differs from that in the run's folder, except `output`: a run
    may move.

    Errors: OSError or ValueError if the saved recipe cannot be read.
    """
    before = load_recipe(Path(recipe.output) / RECIPE)
    trees: list[Mapping[str, object]] = [to_tree(before), to_tree(recipe)]
    old, new = ({k: v for k, v in tree.items() if k != "output"} for tree in trees)
    return differences(old, new)


def model_changes(recipe: Recipe) -> list[str]:
    """The lines about the model and its methods; none if the saved recipe cannot be read."""
    try:
        changes = recipe_changes(recipe)
    except (OSError, ValueError):
        return []
    return [line for line in changes if line.startswith(("model.", "methods."))]


def check_best(best: str, evaluator: Evaluator) -> None:
    """Errors: ValueError if the evaluation does not compute this score; it names those that it
    does. Collective."""
    tasks = list(evaluator.orders)
    task, _, score = best.partition("/")
    if task not in tasks:
        raise ValueError(
            f"training.best: got {best!r}; give TASK/SCORE with one of the tasks that are "
            f"evaluated: {', '.join(tasks) or 'none has data in `evaluate`'}"
        )
    names = evaluator.score_names(task)
    if score not in names:
        known = ", ".join(f"{task}/{name}" for name in names) or "none: its data have no labels"
        raise ValueError(f"training.best: got {best!r}; the scores of {task} are {known}")


class BestStep:
    """The highest value of one score, and the artifact of its step. All ranks have one; the first
    rank's knows the value.

    RUN/best is an artifact like RUN/artifact, which is the last step's. It holds best.json, the
    score and the step, so that they change together. If it is damaged, a resumed run says so and
    looks for the best step from there on.
    """

    def __init__(self, name: str, folder: Path, *, resumed: bool) -> None:
        """`name`: TASK/SCORE. `resumed`: read what the run has found before; on the first rank
        alone."""
        self.name, self.folder = name, folder
        self.known = self._read() if resumed else None

    def _read(self) -> Best | None:
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
        """The value of a step's evaluations if it is the highest so far, else None.

        A repeated step was interrupted, perhaps before its artifact was whole: an equal value is
        enough for it.
        """
        task, _, score = self.name.partition("/")
        scores = next((e.scores for e in evaluations if e.task == task), {})
        value, known = scores.get(score, nan), self.known
        if isnan(value):
            return None
        if known is None or isnan(known.value) or value > known.value:
            return value
        return value if (step, value) == (known.step, known.value) else None

    def note(self, value: float, step: int) -> dict[str, str]:
        """Remember this step; returns what its artifact holds besides, file name -> text."""
        self.known = Best(step, self.name, value)
        return {BEST: json.dumps(asdict(self.known)) + "\n"}


@dataclass(frozen=True)
class Best:
    """The best evaluation so far."""

    step: int
    score: str
    """Which of the scores it is."""
    value: float


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


def name_of(step: int) -> str:
    """What the folder of a state is called."""
    return f"step-{step:08d}"


def state_folders(folder: Path) -> list[Path]:
    """All run states below `RUN/state`, oldest first, whole or not."""
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
        # An input is a folder, or a URL ("://").
        if "://" not in name and folder.resolve().is_relative_to(Path(name).resolve()):
            raise ValueError(
                f"output: {output} lies in {name}, which the run reads; name another folder"
            )
    if not (folder / RECIPE).is_file():
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
