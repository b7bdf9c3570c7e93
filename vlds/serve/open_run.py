"""A run that stays open: it answers one question after the other."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import torch

from vlds.artifact import LoadedRun, artifact_folder, check_changes, load_run, read_recipe
from vlds.evaluation.answer import choose_task, predict
from vlds.tasks.base import Task


class RunAnswer(NamedTuple):
    """What a run says: `vlds.models.model.Answer`, its task and the time."""

    text: str
    confidence: float
    """Probability that the model gives to the whole answer."""
    token_confidence: float | None
    """The geometric mean over the tokens of a text, which tells more of a long one. None for one
    token, and where answers are restricted."""
    prompt_cut: bool
    """True if the question was longer than the task reads."""
    task: str
    seconds: float
    """From bytes to answer, without waiting for other questions."""


class OpenRun:
    """A loaded run; any number of threads may ask."""

    def __init__(self, loaded: LoadedRun) -> None:
        self._loaded = loaded
        self._lock = Lock()

    @property
    def tasks(self) -> Mapping[str, Task]:
        """The run's tasks by name."""
        return self._loaded.recipe.tasks

    def answer(
        self, pictures: Sequence[bytes], question: str = "", task: str | None = None
    ) -> RunAnswer:
        """Answer a question about encoded pictures; `task` is needed where the run has several.

        Errors: ValueError for what is not a picture, an unknown task, or a missing question.
        """
        name = choose_task(self._loaded.recipe, task, question)
        with self._lock:
            begin = time.perf_counter()
            answer = predict(self._loaded, name, pictures, question)
            return RunAnswer(*answer, name, time.perf_counter() - begin)


def check_run(run: Path, changes: Sequence[str]) -> None:
    """Check the run before its model is loaded.

    Errors: ValueError where the folder holds no artifact, or one that sees no pictures.
    """
    check_changes(changes)
    if read_recipe(artifact_folder(run), changes).image is None:
        raise ValueError(
            "--serve: the run's vision encoder reads stored features, not pictures; answer data "
            "sets with --data"
        )


def open_run(run: Path, changes: Sequence[str] = ()) -> OpenRun:
    """Load a run or an artifact, onto a GPU where there is one.

    Errors: ValueError as `load_run` has them.
    """
    loaded = load_run(run, changes=changes)
    loaded.model.to("cuda" if torch.cuda.is_available() else "cpu")
    return OpenRun(loaded)
