"""The gallery: pictures of a run's evaluation data, each with the run's prediction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import product
from pathlib import Path

from vlds.config import Recipe
from vlds.data.shards.store import Dataset, open_dataset
from vlds.report.compute.answers import answered
from vlds.report.read.predictions import Predictions, texts_of
from vlds.report.read.samples import GalleryEntry, write_gallery
from vlds.schema import Encoded, Sample, SkipSample
from vlds.tasks.base import SPLITS, Task, ask, label_of

PER_TASK = 6
"""Examples of each task, spread evenly over its data."""


def collect_gallery(run: Path, recipe: Recipe, predictions: Mapping[str, Predictions]) -> None:
    """Write a run's gallery from its newest predictions; nothing where it has none.

    Errors: ValueError where a data set of the recipe cannot be read, or holds none of the
    examples.
    """
    chosen = list(entries(recipe, predictions))
    if chosen:
        write_gallery(run, chosen)
    elif any(predicted.is_own for predicted in predictions.values()):
        raise ValueError(
            "the predictions are of other examples than those that the recipe's tasks name under "
            "`evaluate` and `test`"
        )


def entries(
    recipe: Recipe, predictions: Mapping[str, Predictions]
) -> Iterator[tuple[GalleryEntry, tuple[Encoded, ...]]]:
    """Examples with their encoded pictures, task by task."""
    for task_name, split in product(recipe.tasks, SPLITS):
        task, name = recipe.tasks[task_name], label_of(task_name, split)
        if name in predictions:
            cache = recipe.data.shard_cache
            datasets = [open_dataset(folder, cache) for folder in task.data_of(split)]
            for index, sample in enumerate(spread(datasets)):
                shown = entry(name, task, sample, index, predictions[name])
                if shown is not None:
                    yield shown, sample.images


def spread(datasets: list[Dataset]) -> Iterator[Sample]:
    """Samples at even distances, without those that cannot be read."""
    total = sum(dataset.num_samples for dataset in datasets)
    for index in sorted({(2 * n + 1) * total // (2 * PER_TASK) for n in range(PER_TASK)}):
        for dataset in datasets:
            if index < dataset.num_samples:
                with suppress(SkipSample):
                    yield dataset.read(index)
                break
            index -= dataset.num_samples


def entry(
    name: str, task: Task, sample: Sample, index: int, predicted: Predictions
) -> GalleryEntry | None:
    """One example of a sample, for the page; `index` chooses among its annotations. None if it was
    not predicted."""
    annotation = None
    key = sample.id
    if task.unit == "annotation":
        if not sample.annotations:
            return None
        annotation = index % len(sample.annotations)
        key = str(sample.annotations[annotation].get("id"))
    if key not in predicted.predictions:
        return None
    try:
        prompt = ask(task, name, sample, annotation, None).prompt
    except SkipSample:  # the data have changed since the evaluation
        return None
    example = answered(task, key, predicted, ())
    return GalleryEntry(
        task=name,
        id=key,
        images=(),
        prompt=prompt,
        reference=texts_of(predicted.references[key]) if example.answer is None else example.answer,
        prediction=example.prediction,
        correct=example.correct,
        confidence=example.confidence,
    )
