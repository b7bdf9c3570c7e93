"""What a report reads in a run folder, and how the others write it there.

metrics.jsonl   lines of training ("loss", "loss/TASK", ...) and of evaluation ("scores")
predictions/    one file a task, of the training's evaluations or of `vlds evaluate`; optional
scores.json     scores of several models beside each other, or those of `vlds evaluate`; optional
gallery/        sample pictures with prediction, and samples.json; optional
recipe.yaml     the resolved recipe; optional
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlds.report.read.samples import GalleryEntry, read_gallery
from vlds.report.read.scores import Scores, TaskScores, read_scores
from vlds.runtime.metrics_file import read_metric_lines
from vlds.runtime.regular_file import read_text
from vlds.runtime.yaml_file import parse_yaml

Curve = list[tuple[float, float]]
"""Points (step, value)."""


@dataclass(frozen=True)
class RunInputs:
    """Everything a report shows of one run."""

    name: str
    folder: Path
    losses: Mapping[str, Curve]
    """Task -> curve; "" is the loss over all tasks."""
    score_curves: Mapping[str, Curve]
    """Task -> headline score over the steps it was evaluated at."""
    scores: Scores
    gallery: Sequence[GalleryEntry]
    recipe: str | None
    steps_done: int | None
    """Of training; None where no step was logged."""
    seconds: float = 0.0
    """Of training, evaluations and states not counted; 0 where it was not logged."""
    complaint: str = ""
    """About lines of metrics.jsonl that do not count."""


def read_run(folder: Path) -> RunInputs:
    """Read a run folder.

    Errors: ValueError where it is none, or a file in it cannot be read.
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
    found = read_metric_lines(folder / "metrics.jsonl")
    lines = [metrics for _, metrics in found.lines]
    file = folder / "recipe.yaml"
    recipe = read_text(file, errors="replace") if file.is_file() else None
    stored = read_scores(folder / "scores.json")
    headlines = headlines_of(recipe)
    headlines |= {task: entry.metrics[0] for task, entry in stored.tasks.items() if entry.metrics}
    name = folder.resolve().name
    return RunInputs(
        name=name,
        folder=folder,
        losses=loss_curves(lines),
        score_curves=score_curves(lines, headlines),
        scores=filled_from_metrics(stored, lines, name, headlines),
        gallery=read_gallery(folder),
        recipe=recipe,
        seconds=sum(line.get("seconds", 0.0) for line in lines),
        complaint=found.complaint,
        steps_done=max((line["step"] for line in lines if "loss" in line), default=None),
    )


def find_runs(folders: Sequence[Path]) -> tuple[list[Path], list[ValueError]]:
    """The folders that hold runs, and what is wrong with the others, as in `vlds report runs/*`.

    Errors: ValueError where none holds a run.
    """
    runs: list[Path] = []
    strangers: list[ValueError] = []
    for folder in folders:
        try:
            read_run(folder)
            runs.append(folder)
        except ValueError as error:
            strangers.append(error)
    if not runs:
        raise strangers[0]
    return runs, strangers


def headlines_of(recipe: str | None) -> dict[str, str]:
    """The score that stands for each task that says so in a recipe's text."""
    try:
        tree = parse_yaml(recipe or "", "recipe.yaml")
    except ValueError:  # said where the whole recipe is read
        return {}
    tasks = entries_of(tree, "tasks")
    named = {task: entries_of(entry, "init_args").get("headline") for task, entry in tasks.items()}
    return {task: headline for task, headline in named.items() if isinstance(headline, str)}


def entries_of(tree: object, key: str) -> Mapping[str, Any]:
    """The entries below a key; none where the tree has another form."""
    entries = tree.get(key) if isinstance(tree, dict) else None
    return entries if isinstance(entries, dict) else {}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that count; none where there is no such file."""
    return [metrics for _, metrics in read_metric_lines(path).lines]


def loss_curves(lines: Iterable[Mapping[str, Any]]) -> dict[str, Curve]:
    """Loss over all tasks (""), then of each task."""
    curves: dict[str, Curve] = {}
    for line in lines:
        for key, value in line.items():
            if key == "loss" or key.startswith("loss/"):
                curves.setdefault(key[5:], []).append((line["step"], value))
    return curves


def score_curves(
    lines: Iterable[Mapping[str, Any]], headlines: Mapping[str, str]
) -> dict[str, Curve]:
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
    scores: Scores,
    lines: Sequence[Mapping[str, Any]],
    column: str,
    headlines: Mapping[str, str],
) -> Scores:
    """Take what scores.json lacks from the last such lines of metrics.jsonl."""
    last: dict[str, Any] = {}
    for line in lines:
        last |= line
    speeds = [line["samples_per_second"] for line in lines if "samples_per_second" in line]
    speed = {"training": statistics.median(speeds)} if speeds else {}
    tasks = {
        task: TaskScores({column: given}, headline=headlines.get(task))
        for task, given in last.get("scores", {}).items()
    }
    return Scores(
        scores.columns or ([column] if tasks else []),
        scores.tasks or tasks,
        scores.trainable or last.get("trainable", {}),
        scores.bytes_per_rank or last.get("bytes_per_rank", {}),
        scores.samples_per_second or speed,
    )
