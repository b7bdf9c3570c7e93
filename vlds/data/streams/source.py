"""A task and the data sets that feed it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np

from vlds.data.order.permutation import WHOLE_SAMPLE, hashed
from vlds.data.shards.num_pictures import ANY_NUMBER, NumPictures
from vlds.data.shards.store import Dataset
from vlds.schema import Example, ImageSpec, Sample, SkipSample
from vlds.tasks.base import Task, ask

FIRST_READ = 8
"""Samples of a data set of which one must be usable."""


@dataclass(frozen=True)
class Source:
    """One task of a recipe with its data sets; their shards are shuffled as if they were one."""

    name: str
    """The task's name in the recipe."""
    task: Task
    datasets: Sequence[Dataset]
    weight: float = 1.0
    """Share of its examples, relative to the other sources' weights."""
    batch_size: int | None = None
    """Examples of its global batches, where batches are of one task; None: as many as the
    others'."""
    num_pictures: NumPictures = ANY_NUMBER
    """Of each sample."""

    @cached_property
    def first_sample(self) -> list[int]:
        """Number of each data set's first sample among the samples of all."""
        return [0, *accumulate(dataset.num_samples for dataset in self.datasets)]

    @property
    def counts(self) -> list[np.ndarray]:
        """Annotations of each sample, shard by shard through the data sets."""
        return [counts for dataset in self.datasets for counts in dataset.counts]

    @property
    def data_id(self) -> str:
        """Names, splits and content of the data sets: "mine-test@1b2c3d4e5f607182"."""
        prints = [dataset.fingerprint() for dataset in self.datasets]
        content = prints[0] if len(prints) == 1 else hashed(prints)
        return f"{'+'.join(dataset.label for dataset in self.datasets)}@{content}"

    @property
    def num_annotations(self) -> int:
        """Of all data sets."""
        return sum(dataset.num_annotations for dataset in self.datasets)

    def locate(self, sample: int) -> tuple[Dataset, int]:
        """Data set that holds a sample of the source, and the sample's number in it."""
        number = bisect_right(self.first_sample, sample) - 1
        return self.datasets[number], sample - self.first_sample[number]

    def fixed_example(self, number: int, sample: Sample, annotation: int) -> Example:
        """What evaluation asks about a sample of the source, by its number there.

        Ids are unique within a data set only, and predictions go by them: where there are several
        data sets, they begin with the data set's name and split.

        Errors: SkipSample where its annotations are not what the task reads.
        """
        whole = annotation == WHOLE_SAMPLE
        example = ask(self.task, self.name, sample, None if whole else annotation, None)
        start = f"{self.locate(number)[0].label}/" if len(self.datasets) > 1 else ""
        return replace(example, id=f"{start}{example.id}", sample=f"{start}{sample.id}")

    def check(self, image: ImageSpec | None) -> None:
        """Check that there is data, each data set once, and of the sort that the model sees.

        Errors: ValueError that names the source and the cure.
        """
        if not self.datasets:
            raise ValueError(f"source {self.name}: no data sets; name at least one folder")
        labels = [dataset.label for dataset in self.datasets]
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(
                f"source {self.name}: {', '.join(twice)} comes twice; name each folder once, and "
                "give data sets of one name different splits"
            )
        for dataset in self.datasets:
            if dataset.num_annotations == 0:
                raise ValueError(
                    f"source {self.name}: data set {dataset.folder} has no annotations"
                )
            self._check_number(dataset)
            self._read_first(dataset, image)

    def _check_number(self, dataset: Dataset) -> None:
        """Errors: ValueError where a sample has more or fewer pictures than it may have."""
        pictures, known = dataset.pictures, list(dataset.quarantine)
        if (odd := self.num_pictures.first_odd(pictures, known)) is not None:
            found = int(np.concatenate(pictures)[odd])
            raise ValueError(
                f"source {self.name}: data set {dataset.folder}, sample {odd} (in "
                f"{dataset.shard_of(odd)}): {self.num_pictures.fault(found)}"
            )

    def _read_first(self, dataset: Dataset, image: ImageSpec | None) -> None:
        """Read the first samples, up to one that can be used: others are counted when they come up.

        Errors: ValueError where none of them can be used.
        """
        first: SkipSample | None = None
        few = min(FIRST_READ, dataset.num_samples)
        for number in range(few):
            if number in dataset.quarantine:
                continue
            try:
                check_pictures(dataset.folder, dataset.read(number), image)
                return
            except SkipSample as error:
                first = first or error
        if first is not None:
            raise ValueError(
                f"source {self.name}: none of the first {few} samples of data set "
                f"{dataset.folder} can be used; {first}"
            )


def check_pictures(place: str | Path, sample: Sample, image: ImageSpec | None) -> None:
    """Pictures for a vision encoder that decodes them, features for one that reads those.

    `place`: of the data set.
    """
    if image is None and sample.images and not sample.features:
        raise ValueError(
            f"data set {place} holds pictures, but the vision encoder reads stored "
            "features; choose an encoder of pictures, or pack features"
        )
    if image is not None and sample.features and not sample.images:
        raise ValueError(
            f"data set {place} holds stored features, but the vision encoder wants "
            "pictures; choose the encoder of stored features, or prepare the data set with pictures"
        )
