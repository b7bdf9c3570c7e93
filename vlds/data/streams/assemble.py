"""Positions -> Batch, in whichever process: read, decode, ask the task, replace, collate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch.utils.data

from vlds.data.errors import BadSample, ErrorPolicy, ShardError
from vlds.data.order.permutation import WHOLE_SAMPLE
from vlds.data.order.randomness import Draws, Ints, random_words
from vlds.data.shards.decode import PictureCache
from vlds.data.streams.collate import Row, collate
from vlds.data.streams.opened import Opened, OpenedSamples
from vlds.data.streams.source import Source
from vlds.schema import Batch, Example, ImageSpec, Sample, SkipSample
from vlds.tasks.base import ask


class Order(Protocol):
    """Positions -> source, sample of the source, annotation of the sample."""

    def at(self, positions: Ints) -> tuple[Ints, Ints, Ints]: ...


@dataclass
class Parcel:
    """What a worker hands to the training process."""

    positions: list[int]
    batch: Batch | None = None
    """None where no batch could be made: then `bad` or `error` says why."""
    bad: list[BadSample] = field(default_factory=list)
    error: ValueError | None = None
    """As a value, because torch would wrap a raised one in the worker's traceback."""

    def pin_memory(self) -> Parcel:
        """Called by torch's DataLoader when it pins."""
        return replace(self, batch=self.batch and self.batch.pin_memory())


class Assembler(torch.utils.data.Dataset[Parcel]):
    """Makes batches of positions; the same ones in every process."""

    def __init__(
        self,
        sources: Sequence[Source],
        order: Order,
        tokenizer: Any,
        image: ImageSpec | None,
        *,
        seed: int | None,
        policy: ErrorPolicy,
        cache_bytes: int,
        first_task: int = 0,
    ) -> None:
        """`seed` None means evaluation: nothing is drawn and bad samples are not valid."""
        self.sources = sources
        self.order = order
        self.tokenizer = tokenizer
        self.image = image
        self.seed = seed
        self.policy = policy
        self.first_task = first_task
        self._cache = PictureCache(cache_bytes)
        self._draws = None if seed is None else Draws(seed)
        self._num_images = 0

    def __getitems__(self, positions: list[int]) -> Parcel:
        """The batch of these positions."""
        parcel = Parcel(positions)
        places = self.order.at(np.array(positions, np.int64))
        numbers, samples, annotations = (p.tolist() for p in places)
        opened = OpenedSamples(
            self.sources,
            self.image,
            self._cache,
            max(len(positions), self._num_images),
            evaluation=self.seed is None,
        )
        rows = []
        try:
            opened.load(zip(numbers, samples, strict=True))
            for position, *place in zip(positions, numbers, samples, annotations, strict=True):
                row = self._row(position, place, opened, parcel.bad)
                if row is None:
                    return parcel
                rows.append(row)
            self._num_images = max(self._num_images, len(opened.stack))
            parcel.batch = collate(
                rows,
                opened.stack,
                self.tokenizer,
                features=self.image is None,
                evaluation=self.seed is None,
            )
        except ValueError as error:  # ShardError is one
            parcel.error = error
        return parcel

    def _row(
        self,
        position: int,
        place: list[int],
        opened: OpenedSamples,
        bad: list[BadSample],
    ) -> Row | None:
        """The example of a position, or of a substitute; None where no substitute is any better."""
        number, sample, annotation = place
        source = self.sources[number]
        first_bad: BadSample | None = None
        for attempt in range(self.policy.max_in_a_row + 1):
            content: Opened | None = None
            try:
                content = opened.open((number, sample))
                if content.fault is not None:
                    raise SkipSample(content.fault)
                example = self._example(
                    source, sample, content.sample, annotation, position, attempt
                )
            except (SkipSample, ShardError) as error:
                if isinstance(error, ShardError) and self.policy.on_bad_shard == "stop":
                    raise
                entry = self._bad(source, sample, annotation, position, content, error)
                bad.append(entry)
                first_bad = first_bad or entry
                sample, annotation = self._substitute(source, sample, position, attempt, annotation)
                continue
            if first_bad and self.seed is None:
                # Another example's text and picture fill the row, but not under its id.
                example = replace(
                    example, id=first_bad.id or f"{first_bad.dataset}/{first_bad.key}"
                )
            return Row(
                example=example,
                task_index=self.first_task + number,
                max_prompt_tokens=source.task.max_prompt_tokens,
                max_target_tokens=source.task.max_target_tokens,
                images=content.images,
                valid=first_bad is None or self.seed is not None,
            )
        return None

    def _example(
        self,
        source: Source,
        number: int,
        sample: Sample,
        annotation: int,
        position: int,
        attempt: int,
    ) -> Example:
        """`number`: the sample's, in the source."""
        if self._draws is None:
            return source.fixed_example(number, sample, annotation)
        rng = self._draws.at(position, attempt)
        example = ask(source.task, source.name, sample, annotation, rng)
        require_target(source.name, example, sample)
        return example

    def _substitute(
        self, source: Source, sample: int, position: int, attempt: int, annotation: int
    ) -> tuple[int, int]:
        """Another example of the same data set; depends on nothing but position and attempt."""
        dataset, local = source.locate(sample)
        seed = 0 if self.seed is None else self.seed
        word = int(random_words(1, seed, "substitute", source.name, position, attempt)[0])
        first = sample - local
        if annotation == WHOLE_SAMPLE:
            return first + word % dataset.num_samples, WHOLE_SAMPLE
        ends = np.cumsum(np.concatenate(dataset.counts), dtype=np.int64)
        drawn = word % int(ends[-1])
        other = int(np.searchsorted(ends, drawn, side="right"))
        return first + other, drawn - (int(ends[other - 1]) if other else 0)

    def _bad(
        self,
        source: Source,
        sample: int,
        annotation: int,
        position: int,
        content: Opened | None,
        error: Exception,
    ) -> BadSample:
        dataset, local = source.locate(sample)
        example = None
        if content is not None and content.fault is not None and self.seed is None:
            example = source.fixed_example(sample, content.sample, annotation)
        return BadSample(
            position=position,
            dataset=dataset.label,
            shard=dataset.shard_of(local),
            key=content.sample.key if content else f"number {local}",
            id=example.id if example else content.sample.id if content else "",
            reason=str(error),
            reference=example.reference if example else None,
            sample=example.sample if example else "",
        )


def require_target(source: str, example: Example, sample: Sample) -> None:
    """Training needs a target.

    Errors: ValueError that names the example.
    """
    if example.target is None:
        raise ValueError(
            f"source {source}: example {example.id} of data set {sample.dataset} has no "
            "target; it cannot be trained on: name a split with labels"
        )
