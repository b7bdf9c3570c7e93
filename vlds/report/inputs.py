"""What a report reads in a run folder, and how the others write it there.

metrics.jsonl   lines of training ("loss", "loss/TASK", ...) and of evaluation ("scores")
scores.json     scores of several models beside each other; optional
gallery.json    sample pictures with prediction; optional, pictures under gallery/
recipe.yaml     the resolved recipe; optional
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

Curve = list[tuple[float, float]]
"""Points (step, value)."""

THUMBNAIL_SIZE = 320
"""Longest side, in pixels, of a picture in the gallery."""


@dataclass(frozen=True)
class TaskScores:
    """One task: metrics of each model that was scored on it."""

    by_column: Mapping[str, Mapping[str, float]]
    """Label of the column -> metric -> value; a column without scores is absent."""
    examples: int | None = None
    """How many examples were scored."""
    headline: str | None = None
    """The metric that stands for the task; default: the first."""

    @property
    def metrics(self) -> list[str]:
        """All metrics of all columns, the headline first."""
        names = list(dict.fromkeys(name for scores in self.by_column.values() for name in scores))
        return sorted(names, key=lambda name: name != self.headline) if self.headline else names


@dataclass(frozen=True)
class Scores:
    """What scores.json holds."""

    columns: Sequence[str]
    """Labels of the models beside each other, in order."""
    tasks: Mapping[str, TaskScores]
    trainable: Mapping[str, float] = field(default_factory=dict)
    """total, trainable, percent."""
    bytes_per_rank: Mapping[str, float] = field(default_factory=dict)
    """What -> bytes that each rank holds."""
    samples_per_second: Mapping[str, float] = field(default_factory=dict)
    """What -> examples a second, over all ranks."""


@dataclass(frozen=True)
class GalleryEntry:
    """One example to look at."""

    task: str
    id: str
    images: Sequence[str]
    """Paths of the pictures, relative to the run folder."""
    prompt: str
    reference: str | Sequence[str]
    prediction: str
    correct: bool | None = None
    """None where right or wrong is no yes-or-no matter."""


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


def read_run(folder: Path) -> RunInputs:
    """Read a run folder.

    Errors: ValueError where it is none, or a file in it cannot be read.
    """
    if not any((folder / name).is_file() for name in ("metrics.jsonl", "scores.json")):
        raise ValueError(
            f"{folder}: holds neither metrics.jsonl nor scores.json; name a folder that "
            "`vlds train` wrote"
        )
    lines = read_metrics(folder / "metrics.jsonl")
    stored = read_scores(folder / "scores.json")
    headlines = {task: scores.metrics[0] for task, scores in stored.tasks.items() if scores.metrics}
    recipe = folder / "recipe.yaml"
    return RunInputs(
        name=folder.resolve().name,
        folder=folder,
        losses=loss_curves(lines),
        score_curves=score_curves(lines, headlines),
        scores=filled_from_metrics(stored, lines, folder.resolve().name),
        gallery=read_gallery(folder / "gallery.json"),
        recipe=recipe.read_text("utf-8") if recipe.is_file() else None,
    )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl; a last line that was cut off is left out."""
    texts = path.read_text("utf-8").splitlines() if path.is_file() else []
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(texts, 1):
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError as error:
            if number < len(texts):
                raise ValueError(f"{path}, line {number}: is not JSON ({error})") from None
    return lines


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


def read_scores(path: Path) -> Scores:
    """scores.json; empty where there is none."""
    if not path.is_file():
        return Scores((), {})
    tree = read_json(path)
    columns = tree["columns"]
    tasks = {
        task: TaskScores(
            {label: entry[label] for label in columns if entry.get(label)},
            entry.get("examples"),
            entry.get("headline"),
        )
        for task, entry in tree["tasks"].items()
    }
    facts = {
        name: tree.get(name) or {} for name in ("trainable", "bytes_per_rank", "samples_per_second")
    }
    return Scores(columns, tasks, **facts)


def write_scores(path: Path, scores: Scores) -> None:
    """Write scores.json."""
    tree = asdict(scores) | {"columns": list(scores.columns)}
    tree["tasks"] = {
        task: {label: entry.by_column.get(label) for label in scores.columns}
        | {"examples": entry.examples, "headline": entry.headline}
        for task, entry in scores.tasks.items()
    }
    path.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")


def filled_from_metrics(scores: Scores, lines: Sequence[Mapping[str, Any]], column: str) -> Scores:
    """Take what scores.json lacks from the last such lines of metrics.jsonl."""
    last: dict[str, Any] = {}
    for line in lines:
        last |= line
    speeds = [line["samples_per_second"] for line in lines if "samples_per_second" in line]
    speed = {"training": statistics.median(speeds)} if speeds else {}
    tasks = {task: TaskScores({column: given}) for task, given in last.get("scores", {}).items()}
    return Scores(
        scores.columns or ([column] if tasks else []),
        scores.tasks or tasks,
        scores.trainable or last.get("trainable", {}),
        scores.bytes_per_rank or last.get("bytes_per_rank", {}),
        scores.samples_per_second or speed,
    )


def read_gallery(path: Path) -> list[GalleryEntry]:
    """gallery.json; empty where there is none."""
    return [GalleryEntry(**entry) for entry in read_json(path)] if path.is_file() else []


def write_gallery(folder: Path, entries: Iterable[tuple[GalleryEntry, Sequence[bytes]]]) -> None:
    """Write gallery.json and thumbnails of the encoded pictures that come with each entry."""
    pictures = folder / "gallery"
    pictures.mkdir(parents=True, exist_ok=True)
    written = []
    for number, (entry, encoded) in enumerate(entries):
        names = [f"gallery/{number:04d}-{place}.png" for place in range(len(encoded))]
        for name, data in zip(names, encoded, strict=True):
            with Image.open(BytesIO(data)) as image:
                thumbnail = image.convert("RGB")
            thumbnail.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
            thumbnail.save(folder / name)
        written.append(asdict(entry) | {"images": names})
    path = folder / "gallery.json"
    path.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Parse a file.

    Errors: ValueError naming the file.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: is not JSON ({error}); write it anew") from None
