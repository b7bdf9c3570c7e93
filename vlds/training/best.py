"""The artifact of the best step so far, by a score that the recipe names.

RUN/best             an artifact, like RUN/artifact, which is the last step's
RUN/best/best.json   its score and step: part of the artifact, so that they change together

If this artifact is damaged, a resumed run says so and looks for the best step from there on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from math import isnan, nan
from pathlib import Path

from vlds.artifact import WEIGHTS
from vlds.evaluation.evaluator import Evaluator
from vlds.evaluation.result import Evaluation
from vlds.runtime.json_record import parse_record
from vlds.runtime.manifest import damage
from vlds.runtime.regular_file import read_file
from vlds.runtime.terminal import tell
from vlds.runtime.whole_file import finish_replacing
from vlds.training.states import Best

BEST = "best.json"


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
    """The highest value of one score. All ranks have one; the first rank's knows the value."""

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
