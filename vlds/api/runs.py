"""A run's folder, as `vlds.train` leaves it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path

from markupsafe import escape

from vlds.api.answers import Model, load
from vlds.api.program import Program
from vlds.api.rows import PICTURE, Row, Rows, small_copy
from vlds.api.words import Changes
from vlds.evaluation.sources import path_of
from vlds.report.clips import Frames
from vlds.report.collect import read_recipe
from vlds.report.examples import asked_of
from vlds.report.predictions import newest_predictions, read_predictions
from vlds.report.read import logged_scores
from vlds.report.scores import RAISED
from vlds.runtime.checks import guess
from vlds.runtime.json_files import DESCRIPTION, read_metric_lines
from vlds.tasks.base import task_of


class Run(PathLike[str]):
    """A run. It stands for its folder wherever a path is asked for; `vlds.Run("runs/mine")` is one
    that was trained before."""

    def __init__(self, folder: str | PathLike[str]) -> None:
        self.folder = path_of("folder", folder)

    def __fspath__(self) -> str:
        return str(self.folder)

    def __str__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        return f"vlds.Run({str(self.folder)!r})"

    @property
    def finished(self) -> bool:
        """True if there is a trained model to load: false for a run that was stopped."""
        return (self.folder / "artifact" / DESCRIPTION).exists()

    @property
    def metrics(self) -> Rows:
        """What was logged, a dict for each line of metrics.jsonl: "step" with "loss" and the like,
        or with "scores".

        Errors: ValueError if there is no such folder.
        """
        if not self.folder.is_dir():
            raise ValueError(f"{self}: no such folder; name one that `vlds train` wrote")
        return Rows(
            metrics for _, metrics in read_metric_lines(self.folder / "metrics.jsonl").lines
        )

    @property
    def scores(self) -> dict[str, dict[str, float]]:
        """Task -> name -> value, of the best step's evaluation in training, if that step was kept,
        else of the newest; empty before the first."""
        return {task: dict(of) for task, of in logged_scores(self.metrics, self.folder).items()}

    def predictions(self, task: str | None = None, *, pictures: bool = False) -> Rows:
        """What the newest evaluation predicted: a row for each example with id, sample, question,
        prediction, right answer, confidence and reference. `task`: required if several were
        evaluated. `pictures`: a small copy of each too, for which all are opened. Questions and
        pictures are read from the data sets of the run's recipe that are on this machine.

        Errors: ValueError if there are none, or their file is damaged.
        """
        files = newest_predictions(self.folder, [])
        known = ", ".join(files) or "none"
        if task is None and len(files) > 1:
            raise ValueError(f"task: the run has predictions of several, say which: {known}")
        name = next(iter(files), "") if task is None else task
        if name not in files:
            hint = guess(name, files) if files else "`vlds.evaluate(run)` makes some; "
            raise ValueError(f"task: {self} has no predictions of {name!r}; {hint}it has: {known}")
        read = read_predictions(files[name])
        recipe = read_recipe(self.folder, [])
        by_id: dict[str, Row] = {}
        for found in () if recipe is None else asked_of(recipe, {name: read.predictions.keys()}):
            by_id[found.id] = {"question": found.prompt}
            if pictures:
                # Of a clip, all frames that the sample holds.
                parts = [s.pictures if isinstance(s, Frames) else [s] for s in found.pictures]
                small = [small_copy(bytes(data)) for part in parts for data in part]
                by_id[found.id][PICTURE] = small
        of_task = None if recipe is None else recipe.tasks.get(task_of(name))
        rows = []
        for key, prediction in read.predictions.items():
            about, reference, answer = by_id.get(key, {}), read.references[key], None
            if of_task is not None and reference is not None:
                # A file that another program has written may hold references of another form.
                with suppress(ValueError, *RAISED):
                    answer = of_task.answer_of(reference)
            rows.append(
                {
                    "id": key,
                    "sample": read.samples.get(key),
                    **({PICTURE: about.get(PICTURE)} if pictures else {}),
                    "question": about.get("question"),
                    "prediction": prediction,
                    "right_answer": answer,
                    "confidence": read.confidences.get(key),
                    "reference": reference,
                }
            )
        return Rows(rows)

    def report(self) -> Path:
        """Write the run's page, with curves, scores and predictions; its path.

        Errors: as `vlds.train`.
        """
        Program("vlds", ["report", str(self.folder)]).run()
        return self.folder / "report.html"

    def load(self, *, trust: Sequence[str] = (), changes: Changes | None = None) -> Model:
        """The trained model, as `vlds.load` opens it."""
        return load(self.folder, trust=trust, changes=changes)

    def _repr_html_(self) -> str:
        rows = [
            {"task": task, "score": name, "value": value}
            for task, scores in self.scores.items()
            for name, value in scores.items()
            if "/" not in name  # groups of examples have scores too
        ]
        return escape(repr(self)) + Rows(rows)._repr_html_() if rows else escape(repr(self))
