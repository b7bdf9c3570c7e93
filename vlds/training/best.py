"""The best step of a run so far, by a score that the recipe names: its artifact is kept.

RUN/best             an artifact, like RUN/artifact, which is the last step's
RUN/best/best.json   which score it had, and at which step: a part of it, so that the two change
                     together

An artifact that is not whole is nobody's best: a resumed run says so and seeks the best step from
there on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from vlds.artifact import WEIGHTS
from vlds.evaluation.evaluator import Evaluator
from vlds.evaluation.result import Evaluation
from vlds.runtime.json_file import read_json
from vlds.runtime.manifest import damage
from vlds.runtime.terminal import tell
from vlds.runtime.whole_file import finish_replacing
from vlds.training.states import Best, best_from

BEST = "best.json"


def check_best(best: str, evaluator: Evaluator) -> None:
    """Errors: ValueError where the evaluation will give no such score, naming those it will.
    Collective."""
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
    """The highest value of one score. On every rank; the first one knows and writes."""

    def __init__(self, name: str, folder: Path, *, resumed: bool) -> None:
        """`name`: TASK/SCORE. `resumed`: look for what the run has found before; on the first rank
        alone."""
        self.name, self.folder = name, folder
        self.found = self._known() if resumed else None

    def _known(self) -> Best | None:
        """What the run has found before; None where its artifact is gone and, which is said, where
        it is not whole."""
        finish_replacing(self.folder)
        if not self.folder.is_dir():
            return None
        wrong = damage(self.folder, (BEST, WEIGHTS))
        if wrong is None:
            try:
                told = best_from(read_json(self.folder / BEST))
                return told if told.score == self.name else None
            except ValueError as error:
                wrong = f"{BEST} cannot be read ({error})"
        tell(
            f"training.best: {self.folder} is passed over: {wrong}; the best step is sought from "
            "here on",
            flush=True,
        )
        return None

    def better(self, evaluations: Sequence[Evaluation], step: int) -> float | None:
        """The value of a step's evaluations, if it is the highest yet.

        Or still is: a step that is repeated was interrupted, perhaps before all of it was kept.
        """
        task, _, score = self.name.partition("/")
        for evaluation in evaluations:
            value = evaluation.scores.get(score)
            if evaluation.task == task and value is not None:
                return value if self._beats(value, step) else None
        return None

    def _beats(self, value: float, step: int) -> bool:
        found = self.found
        if math.isnan(value):
            return False
        if found is None or math.isnan(found.value):
            return True
        if found.step == step:
            return value >= found.value
        return value > found.value

    def note(self, value: float, step: int) -> dict[str, str]:
        """Remember this step; the files that its artifact needs besides, name -> text."""
        self.found = Best(step, self.name, value)
        return {BEST: json.dumps(asdict(self.found)) + "\n"}
