"""Every example of a run: its answer, whether that is right, and how sure the model was. Its input
is looked up in the data sets, by the ids in the predictions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice, product
from typing import Any, NamedTuple

from vlds.config import Recipe
from vlds.data.shards.remote import is_url
from vlds.data.shards.store import open_dataset
from vlds.metrics.tables import split as cell_of
from vlds.report.compute.report import RunReport
from vlds.report.read.predictions import Predictions, texts_of
from vlds.schema import Sample, SkipSample
from vlds.tasks.base import SPLITS, Task, ask, label_of, task_of

MOST_SAMPLES = 300_000
"""Of a task, read one after the other: ten seconds or so."""


class Answered(NamedTuple):
    """One example and what a run said."""

    answer: str | None
    """The right one; None where several are right (captions)."""
    references: str
    """All right answers, as lines."""
    groups: tuple[str | None, ...]
    """The example's group, for each way of `TaskAnswers.ways`."""
    prediction: str
    correct: bool | None
    confidence: float | None


class TaskAnswers(NamedTuple):
    """One task of a run."""

    label: str
    """Of the task's list in the recipe."""
    ways: tuple[str, ...]
    """Ways in which the task's examples are grouped: answer_type, structural, ..."""
    examples: Mapping[str, Answered]
    """By id."""


def answers_of(run: RunReport) -> dict[str, TaskAnswers]:
    """What the run answered, by the name that is shown: on each list of its own data."""
    answers = {}
    for shown, predicted in run.predictions.items():
        if run.recipe is None or not predicted.is_own:
            continue
        task, result = run.recipe.tasks[task_of(predicted.label)], run.results.get(shown)
        ways = ways_of(result.scores if result else ())
        examples = {key: answered(task, key, predicted, ways) for key in predicted.predictions}
        answers[shown] = TaskAnswers(predicted.label, ways, examples)
    return answers


def ways_of(scores: Iterable[str]) -> tuple[str, ...]:
    """The ways of grouping that these scores have."""
    cells = filter(None, map(cell_of, scores))
    return tuple(dict.fromkeys(way for _, way, _ in cells))


def answered(task: Task, key: str, predicted: Predictions, ways: tuple[str, ...]) -> Answered:
    """One example."""
    reference, prediction = predicted.references[key], predicted.predictions[key]
    known = reference is not None
    answer = task.answer_of(reference) if known else None
    return Answered(
        answer=answer,
        references="\n".join(texts_of(reference)) if answer is None else answer,
        groups=tuple(group_of(reference, way) for way in ways),
        prediction=prediction,
        correct=task.correct(prediction, reference) if known else None,
        confidence=predicted.confidences.get(key),
    )


def group_of(reference: Any, way: str) -> str | None:
    """The group of an example, if its reference names one."""
    group = reference.get(way) if isinstance(reference, dict) else None
    return str(group) if isinstance(group, str | int | bool) else None


def prompts_of(
    recipe: Recipe, wanted: Mapping[str, Collection[str]]
) -> Iterator[tuple[str, str, str]]:
    """Label of a task's list, id and input of the wanted examples (label -> ids) that data sets on
    this machine hold; those at URLs are not fetched."""
    for name, split in product(recipe.tasks, SPLITS):
        task, label = recipe.tasks[name], label_of(name, split)
        missing = set(wanted.get(label, ()))
        samples = samples_of(recipe, task.data_of(split)) if missing else iter(())
        for sample in islice(samples, MOST_SAMPLES):
            for key, prompt in prompts_in(task, name, sample, missing):
                yield label, key, prompt
                missing.discard(key)
            if not missing:
                break


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
                    yield dataset.read(index)


def prompts_in(
    task: Task, name: str, sample: Sample, wanted: Collection[str]
) -> Iterator[tuple[str, str]]:
    """Ids and inputs of the wanted examples of a sample."""
    annotations = [None] if task.unit == "sample" else range(len(sample.annotations))
    for annotation in annotations:
        key = sample.id if annotation is None else str(sample.annotations[annotation].get("id"))
        if key in wanted:
            try:
                yield key, ask(task, name, sample, annotation, None).prompt
            except SkipSample:
                continue
