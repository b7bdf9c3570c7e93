"""The best step of a run so far, by a score that the recipe names: its artifact is kept.

RUN/best        an artifact, like RUN/artifact, which is the last step's
RUN/best.json   which score it had, and at which step
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from vlds.artifact import finish_replacing
from vlds.data.info import write_atomically
from vlds.runtime.json_file import read_json
from vlds.training.evaluate import Evaluator
from vlds.training.evaluation import Evaluation
from vlds.training.states import Best, best_from


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
        alone.

        Errors: ValueError where RUN/best.json is not what `note` wrote.
        """
        self.name, self.folder = name, folder
        self._file = folder.with_suffix(".json")
        self.found = self._known() if resumed else None

    def _known(self) -> Best | None:
        """What the run has found before; None also where its artifact is gone."""
        finish_replacing(self.folder)
        if not self._file.is_file() or not self.folder.is_dir():
            return None
        try:
            told = best_from(read_json(self._file))
        except ValueError as error:
            raise ValueError(
                f"--resume: {self._file} cannot be read: {error}; remove it, and the best step is "
                "sought from here on"
            ) from error
        return told if told.score == self.name else None

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
        if found is not None and found.step == step:
            return value >= found.value
        return found is None or value > found.value

    def note(self, value: float, step: int) -> Best:
        """Its artifact has been written: remember it. On the first rank."""
        self.found = Best(step, self.name, value)
        write_atomically(self._file, (json.dumps(asdict(self.found)) + "\n").encode())
        return self.found
