"""Pictures of a run's evaluation data beside what it predicted for them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vlds.config import Recipe, load_recipe
from vlds.data import Dataset, open_dataset
from vlds.report.inputs import GalleryEntry, write_gallery
from vlds.schema import Sample
from vlds.tasks.base import Task

PER_TASK = 6
"""Examples of each task, evenly spread over its data."""


def collect_gallery(run: Path) -> None:
    """Write a run's gallery from its newest predictions; nothing where it has none, or stored
    features."""
    predictions = newest_predictions(run)
    if predictions is None or not (run / "recipe.yaml").is_file():
        return
    recipe = load_recipe(run / "recipe.yaml")
    write_gallery(run, list(entries(recipe, predictions)))


def newest_predictions(run: Path) -> Path | None:
    """Folder with one file a task: that of the latest step, or the one `vlds evaluate` wrote."""
    folders = sorted((run / "predictions").glob("step-*"))
    if folders:
        return folders[-1]
    return run / "predictions" if any((run / "predictions").glob("*.jsonl")) else None


def entries(recipe: Recipe, predictions: Path) -> Iterator[tuple[GalleryEntry, list[bytes]]]:
    """Examples with their encoded pictures, task by task."""
    for name, task in recipe.tasks.items():
        file = predictions / f"{name}.jsonl"
        if not file.is_file():
            continue
        lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        chosen = {line["id"]: line for line in lines[:: max(1, len(lines) // PER_TASK)][:PER_TASK]}
        datasets = (open_dataset(place, recipe.data.shard_cache) for place in task.evaluate)
        for sample, annotation, key in find_samples(task, datasets, chosen):
            if sample.images:
                yield entry(name, task, sample, annotation, chosen[key]), list(sample.images)


def find_samples(
    task: Task, datasets: Iterable[Dataset], wanted: Mapping[str, Any]
) -> Iterator[tuple[Sample, int | None, str]]:
    """The samples, and the numbers of their annotations, that have the wanted ids."""
    left = set(wanted)
    for dataset in datasets:
        for number in range(dataset.num_samples):
            if not left:
                return
            sample = dataset.read(number)
            ids: dict[str, int | None] = {sample.id: None}
            if task.unit == "annotation":
                ids = {str(a["id"]): n for n, a in enumerate(sample.annotations)}
            for key in left & set(ids):
                yield sample, ids[key], key
            left -= set(ids)


def entry(
    name: str, task: Task, sample: Sample, annotation: int | None, line: Mapping[str, Any]
) -> GalleryEntry:
    """One example as the page shows it."""
    reference = line["reference"]
    answer = task.answer_of(reference) if reference is not None else None
    return GalleryEntry(
        task=name,
        id=line["id"],
        images=(),
        prompt=task.example(name, sample, annotation, None).prompt,
        reference=answer if answer is not None else reference or "",
        prediction=line["prediction"],
        correct=task.correct(line["prediction"], reference) if reference is not None else None,
    )
