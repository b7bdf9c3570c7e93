"""Reads a run folder.

metrics.jsonl   lines of training ("loss", "loss/TASK", "added/METHOD") and evaluation ("scores")
predictions/    one file a task, of the training's evaluations or of `vlds evaluate`; optional
scores.json     scores of `vlds evaluate`, or of models compared by `vlds demo`; optional
gallery/        sample pictures with prediction, and samples.json; optional
recipe.yaml     the resolved recipe; optional
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlds.evaluation.scores_json import read_scores
from vlds.report.read.samples import GalleryEntry, read_gallery
from vlds.report.read.scores import Scores, TaskScores, scores_of
from vlds.runtime.metrics_file import read_metric_lines
from vlds.runtime.regular_file import read_text
from vlds.runtime.yaml_file import parse_yaml

Curve = list[tuple[float, float]]
"""Points (step, value)."""
Metrics = Mapping[str, Any]
"""A line of metrics.jsonl."""
SPEEDS = {"training": "samples_per_second", "answering": "answers_per_second"}
"""What a run does -> where a line says how many examples it does in a second."""


@dataclass(frozen=True)
class RunInputs:
    """Everything that a report reads of one run, but for its predictions."""

    name: str
    folder: Path
    lines: Sequence[Metrics]
    """Of metrics.jsonl, without skipped ones."""
    score_curves: Mapping[str, Curve]
    """Task -> headline score over the steps it was evaluated at."""
    scores: Scores
    gallery: Sequence[GalleryEntry]
    recipe: str | None
    recipe_tree: Mapping[str, Any]
    """The recipe's text as a tree; empty if it is not YAML."""
    complaint: str = ""
    """About lines of metrics.jsonl that were skipped."""

    @property
    def losses(self) -> dict[str, Curve]:
        """Task -> curve; "" is the loss over all tasks, "+ NAME" what a method adds to it."""
        curves: dict[str, Curve] = {}
        for line in self.lines:
            for key, value in line.items():
                kind, _, name = key.partition("/")
                if kind in ("loss", "added"):
                    title = f"+ {name}" if kind == "added" else name
                    curves.setdefault(title, []).append((line["step"], value))
        return curves

    @property
    def steps_done(self) -> int | None:
        """Steps of training; None where no step was logged."""
        return max((line["step"] for line in self.lines if "loss" in line), default=None)

    @property
    def seconds(self) -> float:
        """Of training, without evaluations and states; 0 where it was not logged."""
        return float(sum(line.get("seconds", 0.0) for line in self.lines))


def read_run(folder: Path) -> RunInputs:
    """Read a run folder.

    Errors: ValueError where it is not one, or a file in it cannot be read.
    """
    if folder.is_file():
        raise ValueError(f"{folder}: is a file; name a folder that `vlds train` wrote")
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder; name one that `vlds train` wrote")
    known = ("metrics.jsonl", "scores.json", "predictions/*.jsonl", "predictions/step-*/*.jsonl")
    if not any(any(folder.glob(name)) for name in known):
        raise ValueError(
            f"{folder}: holds neither metrics.jsonl nor scores.json nor predictions; name a folder "
            "that `vlds train` wrote"
        )
    metrics = read_metric_lines(folder / "metrics.jsonl")
    lines = [line for _, line in metrics.lines]
    file = folder / "recipe.yaml"
    recipe = read_text(file, errors="replace") if file.is_file() else None
    recipe_tree = tree_of(recipe)
    name = folder.resolve().name
    stored = scores_of(read_scores(folder), name)
    headlines = headlines_of(recipe_tree)
    headlines |= {task: entry.metrics[0] for task, entry in stored.tasks.items() if entry.metrics}
    return RunInputs(
        name=name,
        folder=folder,
        lines=lines,
        score_curves=score_curves(lines, headlines),
        scores=filled_from_metrics(stored, lines, name, headlines),
        gallery=read_gallery(folder),
        recipe=recipe,
        recipe_tree=recipe_tree,
        complaint=metrics.complaint,
    )


def find_runs(folders: Sequence[Path]) -> tuple[list[RunInputs], list[ValueError]]:
    """The runs among these folders, and the errors of the others, as in `vlds report runs/*`.

    Errors: ValueError where none holds a run.
    """
    runs: list[RunInputs] = []
    strangers: list[ValueError] = []
    for folder in folders:
        try:
            runs.append(read_run(folder))
        except ValueError as error:
            strangers.append(error)
    if not runs:
        raise strangers[0]
    return runs, strangers


def tree_of(recipe: str | None) -> dict[str, Any]:
    """A recipe's text as a tree; empty if it is not a mapping in YAML."""
    try:
        tree = parse_yaml(recipe or "", "recipe.yaml")
    except ValueError:  # the report's note says so, where the whole recipe is read
        return {}
    return tree if isinstance(tree, dict) else {}


def headlines_of(recipe: Mapping[str, Any]) -> dict[str, str]:
    """The score that stands for each task that names one."""
    headlines = {}
    for task, entry in entries_of(recipe, "tasks").items():
        headline = entries_of(entry, "init_args").get("headline")
        if isinstance(headline, str):
            headlines[task] = headline
    return headlines


def entries_of(tree: object, key: str) -> Mapping[str, Any]:
    """The entries below a key; none where the tree has another form."""
    entries = tree.get(key) if isinstance(tree, dict) else None
    return entries if isinstance(entries, dict) else {}


def score_curves(lines: Iterable[Metrics], headlines: Mapping[str, str]) -> dict[str, Curve]:
    """Each task's headline score (the first, where none is named) over steps."""
    curves: dict[str, Curve] = {}
    for line in lines:
        for task, scores in line.get("scores", {}).items():
            name = headlines.get(task)
            value = scores.get(name) if name in scores else next(iter(scores.values()), None)
            if value is not None:
                curves.setdefault(task, []).append((line["step"], value))
    return curves


def filled_from_metrics(
    scores: Scores, lines: Sequence[Metrics], column: str, headlines: Mapping[str, str]
) -> Scores:
    """Add size and speed, and where scores.json has none also the scores, as logged last."""
    last: dict[str, Any] = {}
    for line in lines:
        last |= line
    speeds = {what: [line[name] for line in lines if name in line] for what, name in SPEEDS.items()}
    if not scores.tasks and (logged := last.get("scores", {})):
        tasks = {
            task: TaskScores({column: last_scores}, headline=headlines.get(task))
            for task, last_scores in logged.items()
        }
        scores = Scores([column], tasks)
    return replace(
        scores,
        trainable=last.get("trainable", {}),
        bytes_per_rank=last.get("bytes_per_rank", {}),
        samples_per_second={
            what: statistics.median(found) for what, found in speeds.items() if found
        },
    )
