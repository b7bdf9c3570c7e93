"""Every example of a run: what was asked, with its pictures, what the run said, and whether that is
right; and the gallery, a few examples that nobody chose."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice, product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vlds.data.shards.remote import is_url
from vlds.data.shards.store import Dataset, open_dataset
from vlds.recipe.config import Recipe
from vlds.report.clips import Frames, Seen
from vlds.report.predictions import Predictions, texts_of
from vlds.report.read import GalleryEntry, write_gallery
from vlds.report.report import RunReport
from vlds.report.scores import TaskResult
from vlds.schema import Clip, Example, Sample, SkipSample, plain_text
from vlds.tasks.base import SPLITS, Task, ask, label_of, task_of
from vlds.tasks.metrics.plain_scores import split as cell_of

MOST_SAMPLES = 300_000
"""Samples of a task that are read in search of the questions of its predictions; this many take
about ten seconds."""


class Answered(NamedTuple):
    """One example, and what a run said of it."""

    answer: str | None
    """The right one; None where several are right (captions)."""
    references: str
    """All right answers, as lines."""
    prediction: str
    correct: bool | None
    confidence: float | None
    sample: str = ""
    """Id of the picture, pair or clip; "" where it is not known."""
    groups: tuple[str | None, ...] = ()
    """The example's group, for each way of `TaskAnswers.ways`."""
    value: float | None = None
    """What it adds to the score that stands for the task; None where that is not known."""


class TaskAnswers(NamedTuple):
    """One task of a run."""

    label: str
    """TASK, or TASK.test for its test data."""
    ways: tuple[str, ...]
    """Ways in which the task's examples are grouped: answer_type, structural, ..."""
    examples: Mapping[str, Answered]
    """By id."""
    headline: str = ""
    """The score that stands for the task; "" where it has none."""
    lower_is_better: bool = False


def answers_of(run: RunReport) -> dict[str, TaskAnswers]:
    """What the run answered on each list of its recipe's data, by the name that is shown."""
    answers = {}
    for shown, predicted in run.predictions.items():
        if run.recipe is None or not predicted.is_own:
            continue
        task, result = run.recipe.tasks[task_of(predicted.label)], run.results.get(shown)
        ways = groups_by_way(result) if result else {}
        values = result.values if result else None
        examples = {}
        for number, key in enumerate(predicted.predictions):
            value = None if values is None or np.isnan(values[number]) else float(values[number])
            examples[key] = answered(task, key, predicted)._replace(
                groups=tuple(groups[number] for groups in ways.values()), value=value
            )
        headline = result.headline if result else ""
        lower = headline in task.lower_is_better
        answers[shown] = TaskAnswers(predicted.label, tuple(ways), examples, headline, lower)
    return answers


def groups_by_way(result: TaskResult) -> dict[str, list[str | None]]:
    """Way of grouping -> the group of each example, in the order of their ids."""
    # The score "accuracy/answer_type/number" says that examples are grouped by answer_type.
    cells = filter(None, map(cell_of, result.scores))
    references = result.predictions.references.values()
    known = [reference for reference in references if reference is not None]
    ways = {}
    for way in dict.fromkeys(way for _, way, _ in cells):
        # The task tells the groups of labelled examples alone.
        groups = iter(result.task.groups(known, way))
        named = (None if reference is None else next(groups) for reference in references)
        ways[way] = [None if group is None else str(group) for group in named]
    return ways


def answered(task: Task, key: str, predicted: Predictions) -> Answered:
    """One example, without what its result adds."""
    reference, prediction = predicted.references[key], predicted.predictions[key]
    is_known = reference is not None
    answer = task.answer_of(reference) if is_known else None
    return Answered(
        answer=answer,
        references="\n".join(texts_of(reference)) if answer is None else answer,
        prediction=prediction,
        correct=task.correct(prediction, reference) if is_known else None,
        confidence=predicted.confidences.get(key),
        sample=key if task.unit == "sample" else predicted.samples.get(key, ""),
    )


class Asked(NamedTuple):
    """What an example asks, as its data set holds it."""

    label: str
    """The task's list: TASK, or TASK.test."""
    id: str
    prompt: str
    last_turn: str
    """What is asked at the end of a conversation of several turns; "" for others."""
    pictures: Sequence[Seen]
    """Views of the sample's bytes, which are gone with it."""


def asked_of(recipe: Recipe, wanted: Mapping[str, Collection[str]]) -> Iterator[Asked]:
    """The wanted examples (label of a task's list -> ids) that data sets on this machine hold;
    those at URLs are not fetched."""
    for name, split in product(recipe.tasks, SPLITS):
        task, label = recipe.tasks[name], label_of(name, split)
        missing = set(wanted.get(label, ()))
        # Data sets are opened only for lists of which examples are wanted: that may take seconds.
        samples = samples_of(recipe, task.data_of(split)) if missing else iter(())
        for sample in islice(samples, MOST_SAMPLES):
            for annotation in [None] if task.unit == "sample" else range(len(sample.annotations)):
                key = example_id(sample, annotation)
                if key in missing:
                    with suppress(SkipSample):
                        example = ask(task, name, sample, annotation, None)
                        last = plain_text(example.turns[-1:], marks=True) if example.turns else ""
                        last = last if len(example.turns) > 1 else ""
                        pictures = pictures_of(example, sample)
                        yield Asked(label, key, example.shown, last, pictures)
                        missing.discard(key)
            if not missing:
                break


def pictures_of(example: Example, sample: Sample) -> list[Seen]:
    """The pictures and clips of an example."""
    pictures = list(sample.images)
    pieces = [piece for turn in example.turns for piece in turn.content]
    # A conversation's pictures and frames lie in the sample in the order in which it names them.
    seen: list[Seen] = []
    place = 0
    for piece in pieces:
        if isinstance(piece, Clip):
            frames = pictures[place : place + len(piece.times)]
            seen.append(Frames(frames, piece.times))
            place += len(piece.times)
        elif piece is None:
            seen += pictures[place : place + 1]
            place += 1
    return seen if place == len(pictures) else [*pictures]


def example_id(sample: Sample, annotation: int | None) -> str:
    """Id of an example: a sample's own, or that of one of its annotations."""
    return sample.id if annotation is None else str(sample.annotations[annotation].get("id"))


def samples_of(recipe: Recipe, folders: Collection[str]) -> Iterator[Sample]:
    """The good samples of data sets on this machine, up to a damaged shard. Data sets that cannot
    be read are skipped: the gallery's note names them."""
    for folder in folders:
        if is_url(folder):
            continue
        with suppress(ValueError):
            dataset = open_dataset(folder, recipe.data.shard_cache)
            for index in range(dataset.num_samples):
                with suppress(SkipSample):
                    yield with_label(dataset.read(index), dataset, len(folders) > 1)


def with_label(sample: Sample, dataset: Dataset, several: bool) -> Sample:
    """The sample with the ids that its predictions have: they begin with the data set's label, if
    the task has `several`."""
    if not several:
        return sample
    start = f"{dataset.label}/"
    named = tuple({**known, "id": f"{start}{known.get('id')}"} for known in sample.annotations)
    return replace(sample, id=start + sample.id, annotations=named)


# The gallery: pictures of a run's evaluation data, each with the run's prediction.

PER_TASK = 6
"""Examples of each task."""


def collect_gallery(run: Path, recipe: Recipe, predictions: Mapping[str, Predictions]) -> None:
    """Write a run's gallery from its newest predictions; nothing where it has none.

    Errors: ValueError where a data set of the recipe cannot be read, or holds none of the
    examples.
    """
    chosen: list[tuple[GalleryEntry, Sequence[Seen]]] = []
    for task_name, split in product(recipe.tasks, SPLITS):
        task, name = recipe.tasks[task_name], label_of(task_name, split)
        if name in predictions:
            cache = recipe.data.shard_cache
            datasets = [open_dataset(folder, cache) for folder in task.data_of(split)]
            for index, sample in enumerate(spread(datasets)):
                shown = gallery_entry(name, task, sample, index, predictions[name])
                if shown is not None:
                    chosen.append(shown)
    if chosen:
        write_gallery(run, chosen)
    elif any(predicted.is_own for predicted in predictions.values()):
        raise ValueError(
            "the predictions are of other examples than those that the recipe's tasks name under "
            "`evaluate` and `test`"
        )


def spread(datasets: list[Dataset]) -> Iterator[Sample]:
    """PER_TASK samples at even distances over all data sets, without those that cannot be read."""
    total = sum(dataset.num_samples for dataset in datasets)
    # The middles of PER_TASK equal parts: of 60 samples 5 15 25 35 45 55. Small data have some of
    # them twice.
    for index in sorted({(2 * n + 1) * total // (2 * PER_TASK) for n in range(PER_TASK)}):
        for dataset in datasets:
            if index < dataset.num_samples:
                with suppress(SkipSample):
                    yield with_label(dataset.read(index), dataset, len(datasets) > 1)
                break
            # From a number over all data sets to one from the next data set on.
            index -= dataset.num_samples


def gallery_entry(
    name: str, task: Task, sample: Sample, index: int, predicted: Predictions
) -> tuple[GalleryEntry, Sequence[Seen]] | None:
    """One example of a sample, for the page, and its pictures; `index` chooses among its
    annotations. None if it was not predicted."""
    # Samples at different places show annotations at different places: questions of one kind often
    # have the same place in all samples.
    annotation = None
    if task.unit == "annotation":
        if not sample.annotations:
            return None
        annotation = index % len(sample.annotations)
    key = example_id(sample, annotation)
    if key not in predicted.predictions:
        return None
    try:
        asked = ask(task, name, sample, annotation, None)
    except SkipSample:  # the data have changed since the evaluation
        return None
    example = answered(task, key, predicted)
    entry = GalleryEntry(
        task=name,
        id=key,
        images=(),
        prompt=asked.shown,
        reference=texts_of(predicted.references[key]) if example.answer is None else example.answer,
        prediction=example.prediction,
        correct=example.correct,
        confidence=example.confidence,
    )
    return entry, pictures_of(asked, sample)
