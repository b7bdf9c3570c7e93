"""What each example was asked: looked up in the data sets by the ids in the predictions."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import product

from vlds.config import Recipe
from vlds.data.shards.remote import is_url
from vlds.data.shards.store import Dataset, open_dataset
from vlds.schema import Sample, SkipSample
from vlds.tasks.base import SPLITS, Task, ask, label_of

MOST_SAMPLES = 300_000
"""Of a task, read one after the other: ten seconds or so."""


def prompts_of(recipe: Recipe, wanted: Mapping[str, Collection[str]]) -> dict[str, dict[str, str]]:
    """Label of a task's list -> id -> input of these examples, as far as the data sets are on this
    machine; those at URLs are not fetched."""
    found: dict[str, dict[str, str]] = {}
    for name, split in product(recipe.tasks, SPLITS):
        task, label = recipe.tasks[name], label_of(name, split)
        missing = set(wanted.get(label, ()))
        if not missing:
            continue
        prompts = found.setdefault(label, {})
        for number, sample in enumerate(samples_of(recipe, task.data_of(split))):
            for key, prompt in prompts_in(task, name, sample, missing):
                prompts[key] = prompt
                missing.discard(key)
            if not missing or number == MOST_SAMPLES:
                break
    return found


def samples_of(recipe: Recipe, places: Collection[str]) -> Iterator[Sample]:
    """The samples of data sets on this machine; skips data sets that cannot be read."""
    for place in places:
        if is_url(place):
            continue
        try:
            dataset = open_dataset(place, recipe.data.shard_cache)
        except ValueError:  # moved, or damaged; said where the gallery is made
            continue
        yield from readable(dataset)


def readable(dataset: Dataset) -> Iterator[Sample]:
    """Samples in order, without bad ones."""
    for number in range(dataset.num_samples):
        try:
            yield dataset.read(number)
        except SkipSample:
            continue
        except ValueError:  # a damaged shard
            return


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
