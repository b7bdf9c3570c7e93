"""The order of evaluation: every example once, the most work first, one picture's in one batch.

A batch is padded to its longest input, so inputs of similar length go together. A picture is
encoded once a batch, so its questions go together, too. The batches depend on the data alone: ranks
take turns with them, and compute each batch in the same way on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vlds.data.errors import ShardError
from vlds.data.order.permutation import WHOLE_SAMPLE, Ints
from vlds.data.streams.source import Source, fixed_example
from vlds.schema import Collator, Example, SkipSample
from vlds.tasks.base import check_unique

TOGETHER = 1024
"""Prompts that are tokenized at once."""


@dataclass
class Survey:
    """A source's examples before any picture is decoded, in the order of its samples."""

    ids: list[str] = field(default_factory=list)
    references: list[Any] = field(default_factory=list)
    samples: list[str] = field(default_factory=list)
    """Id of each example's sample."""
    costs: list[tuple[int, int]] = field(default_factory=list)
    """Pictures of each sample, and tokens of its longest input."""

    def extend(self, other: Survey) -> None:
        """Append the examples of the samples that follow."""
        self.ids += other.ids
        self.references += other.references
        self.samples += other.samples
        self.costs += other.costs

    def check(self) -> None:
        """Errors: ValueError for an id that comes twice: predictions are found by id."""
        check_unique(self.ids)


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
        if collator is not None:
            limit = source.task.max_prompt_tokens
            lengths = iter(collator.prompt_lengths([(e.prompt, limit) for e in examples]))
            result.costs += [
                (pictures, max((next(lengths) for _ in group), default=0))
                for pictures, group in groups
            ]
    return result


class EvalOrder:
    """Positions of an evaluation: annotations (or whole samples) in the order of the shards, and
    the batches in which they are decoded."""

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
        pictures, tokens = np.array(costs, np.int64).reshape(-1, 2).T
        self.batches: list[list[int]] = self._cut(np.lexsort((-tokens, -pictures)), size)
        """Positions of each batch; those of a sample stand together, in one batch if they fit."""

    def _cut(self, samples: Ints, size: int) -> list[list[int]]:
        batches: list[list[int]] = []
        for sample in samples.tolist():
            end = int(self._ends[sample])
            positions = list(range(end - int(self._counts[sample]), end))
            if batches and len(batches[-1]) + len(positions) <= size:
                batches[-1] += positions
            else:
                starts = range(0, len(positions), size)
                batches += [positions[start : start + size] for start in starts]
        return batches

    def at(self, positions: Ints) -> tuple[Ints, Ints, Ints]:
        """Source (always 0), sample and annotation of each position."""
        sources = np.zeros_like(positions)
        samples = np.searchsorted(self._ends, positions, side="right")
        if self.whole_samples:
            return sources, samples, np.full_like(positions, WHOLE_SAMPLE)
        return sources, samples, positions - (self._ends - self._counts)[samples]
