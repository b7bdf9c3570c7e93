"""A task and the data sets that feed it, what evaluation asks about them, and in which order."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from heapq import nlargest
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from vlds.data.errors import ShardError
from vlds.data.order.epoch_order import WHOLE_SAMPLE, Ints, ShardCounts, hashed
from vlds.data.shards.sample import groups_of
from vlds.data.shards.store import Dataset
from vlds.schema import Collator, Example, Group, PictureSpec, Sample, SkipSample
from vlds.tasks.base import Task, ask

Data = TypeVar("Data", covariant=True)


@dataclass(frozen=True)
class NumPictures:
    """A sample has from `fewest` to `most` pictures, or stored features."""

    fewest: int = 0
    most: int | None = None
    """None: any number."""
    cure: str = "prepare the data set without such samples"
    """What to do about samples with more."""

    def first_odd(self, pictures: Sequence[np.ndarray], but: Sequence[int]) -> int | None:
        """Index of the first sample with too few or too many pictures; None if there is none.
        `pictures`: of each sample, shard by shard; `but`: indices of samples to overlook."""
        # Over the index's arrays at once: data sets have millions of samples.
        counts = np.concatenate(pictures)
        odd = counts < self.fewest
        if self.most is not None:
            odd |= counts > self.most
        odd[list(but)] = False  # no run reads them
        return int(odd.argmax()) if odd.any() else None

    def check(self, sample: Sample) -> None:
        """Errors: SkipSample for a sample with too few or too many."""
        count = len(sample.images) or len(sample.features)
        if count < self.fewest or (self.most is not None and count > self.most):
            raise SkipSample(f"sample {sample.key}: {self.fault(count)}")

    def fault(self, count: int) -> str:
        """The message about a sample with this many."""
        wanted = str(self.fewest)
        if self.most is None:
            wanted += " or more"
        elif self.most != self.fewest:
            wanted += f" to {self.most}"
        noun = "picture" if count == 1 else "pictures"
        cure = NumPictures.cure if count < self.fewest else self.cure
        return f"it has {count} {noun}, {wanted} expected; {cure}"


ANY_NUMBER = NumPictures()


@dataclass(frozen=True)
class TaskSource(Generic[Data]):
    """One task of a recipe with its data sets; their shards are shuffled together."""

    name: str
    """The task's name in the recipe."""
    task: Task
    datasets: Sequence[Data]
    weight: float = 1.0
    """Share of its examples, relative to the other sources' weights."""
    batch_size: int | None = None
    """Examples of its global batches, if batches hold one task; None: data.global_batch_size."""
    num_pictures: NumPictures = ANY_NUMBER
    """Pictures that each sample has."""

    def beside(self, sample: Sample, draws: Sequence[float]) -> Sample:
        """The sample with `others`, for tasks that compare some; each draw, from 0 to 1, says which
        one."""
        raise NotImplementedError("a run has refused tasks that compare samples of a stream")


AnySource = TypeVar("AnySource", bound=TaskSource[object], covariant=True)


class Source(TaskSource[Dataset]):
    """A task with indexed data sets."""

    @cached_property
    def first_sample(self) -> list[int]:
        """Index of each data set's first sample in the source."""
        return [0, *accumulate(dataset.num_samples for dataset in self.datasets)]

    @property
    def counts(self) -> np.ndarray:
        """Annotations of each sample; reads the whole index."""
        return np.concatenate([counts for dataset in self.datasets for counts in dataset.counts])

    def first_counts(self, number: int) -> np.ndarray:
        """Annotations of the first samples; reads no more of the index than that takes."""
        parts, length = [np.zeros(0, np.int64)], 0
        for counts in chain.from_iterable(dataset.counts for dataset in self.datasets):
            if length >= number:
                break
            parts.append(counts)
            length += len(counts)
        return np.concatenate(parts)[:number]

    @property
    def num_shards(self) -> int:
        """Shards of all data sets together."""
        return sum(len(dataset.shard_samples) for dataset in self.datasets)

    @property
    def data_id(self) -> str:
        """Names, splits and content of the data sets: "mine-test@1b2c3d4e5f607182"."""
        prints = [dataset.fingerprint() for dataset in self.datasets]
        content = prints[0] if len(prints) == 1 else hashed(prints)
        return f"{'+'.join(dataset.label for dataset in self.datasets)}@{content}"

    @property
    def num_annotations(self) -> int:
        """Annotations of all data sets together."""
        return sum(dataset.num_annotations for dataset in self.datasets)

    @property
    def most_pictures(self) -> int | None:
        """Pictures, or else stored features, of the sample that has most; None for data sets that
        are too large to look at all."""
        if not all(dataset.is_small for dataset in self.datasets):
            return None
        counts = [shard for dataset in self.datasets for shard in dataset.pictures]
        return int(np.concatenate(counts).max())

    def locate(self, sample: int) -> tuple[Dataset, int]:
        """Data set that holds a sample of the source, and the sample's index in it."""
        index = bisect_right(self.first_sample, sample) - 1
        return self.datasets[index], sample - self.first_sample[index]

    def beside(self, sample: Sample, draws: Sequence[float]) -> Sample:
        """Errors: SkipSample if the source has no other sample that can be read."""
        return replace(sample, others=tuple(self._other(sample, draw) for draw in draws))

    def _other(self, sample: Sample, draw: float) -> Sample:
        num_samples = self.first_sample[-1]
        first = int(draw * num_samples)
        # From the drawn sample on, once around the source: bad ones and the sample itself are out.
        for number in range(num_samples):
            dataset, index = self.locate((first + number) % num_samples)
            try:
                other = dataset.read(index)
            except SkipSample:
                continue
            # By name and id: two splits of one data set may hold the same sample.
            if (other.dataset, other.id) != (sample.dataset, sample.id):
                return other
        raise SkipSample(f"sample {sample.key}: its source has no other one to compare it with")

    def check(self, image: PictureSpec | None) -> None:
        """Check that there is data, each data set once, of the sort that the model reads; read the
        first sample of each.

        Errors: ValueError that names the source and the cure.
        """
        if not self.datasets:
            raise ValueError(f"source {self.name}: no data sets; name at least one folder")
        labels = [dataset.label for dataset in self.datasets]
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(
                f"source {self.name}: {', '.join(twice)} appears twice; name each folder once, and "
                "give data sets of one name different splits"
            )
        for dataset in self.datasets:
            if dataset.num_annotations == 0:
                raise ValueError(
                    f"source {self.name}: data set {dataset.folder} has no annotations"
                )
            # Of a large data set, `IndexedReader` finds them.
            odd = None
            if dataset.is_small:
                odd = self.num_pictures.first_odd(dataset.pictures, list(dataset.quarantine))
            if odd is not None:
                count = int(np.concatenate(dataset.pictures)[odd])
                raise ValueError(
                    f"source {self.name}: data set {dataset.folder}, sample {odd} (in "
                    f"{dataset.shard_of(odd)}): {self.num_pictures.fault(count)}"
                )
            # Read samples up to the first good one; a run counts bad ones when it reads them. One
            # of the first eight must be usable.
            first_error: SkipSample | None = None
            num_tried = min(8, dataset.num_samples)
            for index in range(num_tried):
                if index in dataset.quarantine:
                    continue
                try:
                    check_pictures(dataset.folder, dataset.read(index), image)
                    first_error = None
                    break
                except SkipSample as error:
                    first_error = first_error or error
            if first_error is not None:
                raise ValueError(
                    f"source {self.name}: none of the first {num_tried} samples of data set "
                    f"{dataset.folder} can be used; {first_error}"
                )


class SourceCounts(ShardCounts):
    """The annotations of a source's samples, by the indexes of its data sets."""

    def __init__(self, datasets: Sequence[Dataset]) -> None:
        self._datasets = datasets
        self.samples = np.concatenate([dataset.shard_samples for dataset in datasets])
        self.annotations = np.concatenate([dataset.shard_annotations for dataset in datasets])
        self._first_shard = [0, *accumulate(len(dataset.shard_samples) for dataset in datasets)]

    def of(self, shards: Ints) -> list[np.ndarray]:
        """Errors: ShardError for an index that is not as dataset.json describes it."""
        owners = np.searchsorted(self._first_shard, shards, side="right") - 1
        found: dict[int, np.ndarray] = {}
        for owner in np.unique(owners).tolist():
            wanted, first = shards[owners == owner].tolist(), self._first_shard[owner]
            counts = self._datasets[owner].counts_of([shard - first for shard in wanted])
            found |= zip(wanted, counts, strict=True)
        return [found[shard] for shard in shards.tolist()]


def check_pictures(location: str | Path, sample: Sample, image: PictureSpec | None) -> None:
    """Errors: ValueError for pictures if the vision encoder reads features, and vice versa."""
    if image is None and sample.images and not sample.features:
        raise ValueError(
            f"data set {location} holds pictures, but the vision encoder reads stored "
            "features; choose an encoder of pictures, or pack features"
        )
    if image is not None and sample.features and not sample.images:
        raise ValueError(
            f"data set {location} holds stored features, but the vision encoder wants "
            "pictures; choose the encoder of stored features, or prepare the data set with pictures"
        )


def check_cache_limit(
    limit: int | None,
    train: Sequence[Source],
    evaluation: Sequence[Source],
    *,
    window: int,
    num_lanes: int = 1,
) -> None:
    """Check that a limited cache of shards never removes one that the current window needs.

    Inside a window examples come from all of its shards, and a process may begin the next window
    while another is still in the last one. So the cache needs room for two windows of each of the
    `num_lanes` lanes that this machine reads, and for all data that is evaluated.

    Errors: ValueError that names the bytes needed.
    """
    # The smaller of two bounds holds: all shards that are read (by folder and name: one that
    # several tasks read is fetched once), or the largest windows of every task.
    if limit is None:
        return
    all_shards: dict[tuple[str, str], int] = {}
    for source in (*train, *evaluation):
        all_shards |= _fetched(source)
    num_shards = 2 * window * num_lanes
    trained = [nlargest(num_shards, _fetched(source).values()) for source in train]
    evaluated = [_fetched(source).values() for source in evaluation]
    need = min(sum(all_shards.values()), sum(map(sum, [*trained, *evaluated])))
    if need > limit:
        raise ValueError(
            f"data.cache_bytes: got {limit}, but what is read in turns has {need}: of each task "
            f"two windows (data.window {window}) in each of the {num_lanes} lanes that this "
            "machine reads, and all that is evaluated; give at least that many, or a smaller "
            "window"
        )


def _fetched(source: Source) -> dict[tuple[str, str], int]:
    """Bytes of a source's shards that are read through a cache."""
    return {
        (str(dataset.folder), shard.name): shard.bytes
        for dataset in source.datasets
        if dataset.is_remote
        for shard in dataset.info.shards
    }


def fixed_example(
    source: TaskSource[object], dataset: str, sample: Sample, annotation: int
) -> Example:
    """What evaluation asks about a sample of the data set with this label.

    Ids are unique within a data set only, and predictions go by them: if a source has several data
    sets, ids begin with the label.

    Errors: SkipSample if its annotations are not what the task reads.
    """
    whole = annotation == WHOLE_SAMPLE
    if num := source.task.num_others(evaluation=True):
        # 16 hexadecimal digits as a number from 0 to 1: the same others in every evaluation.
        keys = ([dataset, sample.id, *([n] if n else [])] for n in range(num))
        sample = source.beside(sample, [int(hashed(key), 16) / 16**16 for key in keys])
    example = ask(source.task, source.name, sample, None if whole else annotation, None)
    # One data set's predictions keep its own ids, as servers that score submissions expect.
    several = len(source.datasets) > 1
    start = f"{dataset}/" if several else ""
    groups = groups_of(sample)
    if several:  # by the name alone: a patient in two splits of one data set is the same
        groups = tuple(Group(field, f"{sample.dataset}/{name}") for field, name in groups)
    return replace(example, id=f"{start}{example.id}", sample=f"{start}{sample.id}", groups=groups)


TOGETHER = 1024
"""Prompts that are tokenized at once."""


@dataclass
class Survey:
    """A source's examples before any picture is decoded, in the order of its samples."""

    ids: list[str] = field(default_factory=list)
    references: list[Any] = field(default_factory=list)
    samples: list[str] = field(default_factory=list)
    """Id of each example's sample."""
    groups: dict[str, tuple[Group, ...]] = field(default_factory=dict)
    """Id of a sample -> its groups; only samples that have some."""
    costs: list[tuple[int, int]] = field(default_factory=list)
    """Pictures of each sample, and tokens of its longest input."""

    def extend(self, other: Survey) -> None:
        """Append the examples of the samples that follow."""
        self.ids += other.ids
        self.references += other.references
        self.samples += other.samples
        self.groups |= other.groups
        self.costs += other.costs


def fixed_examples(source: Source, samples: range) -> Iterator[tuple[int, list[Example]]]:
    """The number of pictures of each sample, and what evaluation asks about it.

    Errors: ValueError for a sample whose text cannot be read.
    """
    for index in samples:
        dataset, index_in_dataset = source.locate(index)
        try:
            sample = dataset.read(index_in_dataset)
            whole = source.task.unit == "sample"
            annotations = [WHOLE_SAMPLE] if whole else range(len(sample.annotations))
            examples = [fixed_example(source, dataset.label, sample, n) for n in annotations]
        except ShardError:
            raise
        except SkipSample as error:
            raise ValueError(
                f"task {source.name}: {error}; its questions are unknown, so every score would be "
                "incomplete: prepare the data set again"
            ) from None
        yield len(sample.images) or len(sample.features), examples


def survey(source: Source, samples: range, collator: Collator | None = None) -> Survey:
    """Read the text of some samples. Without a collator their costs stay empty."""
    result = Survey()
    for start in range(samples.start, samples.stop, TOGETHER):
        part = range(start, min(start + TOGETHER, samples.stop))
        groups = list(fixed_examples(source, part))
        examples = [example for _, group in groups for example in group]
        result.ids += [example.id for example in examples]
        result.references += [example.reference for example in examples]
        result.samples += [example.sample for example in examples]
        result.groups |= {e.sample: e.groups for e in examples if e.groups}
        if collator is not None:
            # One call for all prompts, then as many lengths for each sample as it has examples.
            limit = source.task.max_prompt_tokens
            lengths = iter(collator.prompt_lengths([(e.prompt, limit) for e in examples]))
            result.costs += [
                (pictures, max((next(lengths) for _ in group), default=0))
                for pictures, group in groups
            ]
    return result


class EvalOrder:
    """Positions of an evaluation: annotations (or whole samples) in the order of the shards, and
    the batches in which they are decoded: every example once, the most work first.

    A batch is padded to its longest input, so inputs of similar length go together. A picture is
    encoded once a batch, so its questions go together, too. The batches depend on the data alone:
    ranks take turns with them, and compute each batch in the same way on any number of ranks.
    """

    def __init__(
        self,
        counts: Sequence[int] | Ints,
        costs: Sequence[tuple[int, int]],
        size: int,
        *,
        whole_samples: bool = False,
    ) -> None:
        """`counts`: annotations of each sample; `costs`: as in `Survey`; `size`: most examples of a
        batch."""
        one_each = np.ones(len(counts), np.int64)
        self._counts = one_each if whole_samples else np.asarray(counts, np.int64)
        self._ends = np.cumsum(self._counts, dtype=np.int64)
        self.whole_samples = whole_samples
        self.num_examples = int(self._ends[-1]) if len(counts) else 0
        # reshape: without samples the array has one axis, and could not be unpacked.
        pictures, tokens = np.array(costs, np.int64).reshape(-1, 2).T
        self.batches: list[list[int]] = []
        """Positions of each batch; those of a sample stand together, in one batch if they fit."""
        # lexsort's last key comes first: most pictures, then most tokens. The most work first, so
        # that memory runs out in the first batch or never, and no rank ends with the longest one.
        for sample in np.lexsort((-tokens, -pictures)).tolist():
            end = int(self._ends[sample])
            positions = list(range(end - int(self._counts[sample]), end))
            if self.batches and len(self.batches[-1]) + len(positions) <= size:
                self.batches[-1] += positions
            else:
                starts = range(0, len(positions), size)
                self.batches += [positions[start : start + size] for start in starts]

    def at(self, positions: Ints) -> tuple[Ints, Ints, Ints]:
        """Source (always 0), sample and annotation of each position."""
        sources = np.zeros_like(positions)
        # Annotations [2, 3] end at 2 and 5: position 2 is the first annotation of sample 1.
        samples = np.searchsorted(self._ends, positions, side="right")
        if self.whole_samples:
            return sources, samples, np.full_like(positions, WHOLE_SAMPLE)
        return sources, samples, positions - (self._ends - self._counts)[samples]
