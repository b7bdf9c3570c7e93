"""The order of evaluation: every example once, the most work first, one picture's in one batch.

A batch is padded to its longest input, so inputs of like length go together; a picture is encoded
once a batch, so its questions do, too. The batches are a function of the data alone: ranks take
turns with them, and each batch is computed in the same way on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vlds.data.errors import ShardError
from vlds.data.order.permutation import WHOLE_SAMPLE, Ints
from vlds.data.streams.collate import Tokenizer, token_ids
from vlds.data.streams.source import Source, fixed_example
from vlds.schema import Example, SkipSample
from vlds.tasks.base import by_id

TOGETHER = 1024
"""Prompts that are tokenized at once."""


@dataclass
class Survey:
    """What is known of a source's examples before any of them is decoded, in the order of its
    samples."""

    ids: list[str] = field(default_factory=list)
    references: list[Any] = field(default_factory=list)
    samples: list[str] = field(default_factory=list)
    """Id of each example's sample."""
    costs: list[tuple[int, int]] = field(default_factory=list)
    """Pictures of each sample, and tokens of its longest input."""

    def extend(self, other: Survey) -> None:
        """Take the examples of the samples that follow."""
        self.ids += other.ids
        self.references += other.references
        self.samples += other.samples
        self.costs += other.costs

    def check(self) -> None:
        """Errors: ValueError where an id comes twice, since predictions go by them."""
        by_id((key, None) for key in self.ids)


def fixed_examples(source: Source, samples: range) -> Iterator[tuple[int, list[Example]]]:
    """What evaluation asks about each of these samples, with how many pictures it has.

    Errors: ValueError where a sample's text cannot be read.
    """
    counts = np.concatenate(source.counts)
    for number in samples:
        dataset, local = source.locate(number)
        try:
            sample = dataset.read(local)
            whole = source.task.unit == "sample"
            annotations = [WHOLE_SAMPLE] if whole else range(int(counts[number]))
            found = [fixed_example(source, dataset.label, sample, n) for n in annotations]
        except ShardError:
            raise
        except SkipSample as error:
            raise ValueError(
                f"task {source.name}: {error}; what it asks is not known, so no score would be "
                "whole: prepare the data set again"
            ) from None
        yield len(sample.images) or len(sample.features), found


def survey(source: Source, samples: range, tokenizer: Tokenizer | None = None) -> Survey:
    """Read the text of some samples. Without a tokenizer nothing is said of their costs."""
    found = Survey()
    for start in range(samples.start, samples.stop, TOGETHER):
        part = range(start, min(start + TOGETHER, samples.stop))
        groups = list(fixed_examples(source, part))
        examples = [example for _, group in groups for example in group]
        found.ids += [example.id for example in examples]
        found.references += [example.reference for example in examples]
        found.samples += [example.sample for example in examples]
        if tokenizer is not None:
            limit = source.task.max_prompt_tokens
            prompts = token_ids(tokenizer, [(example.prompt, limit) for example in examples])
            lengths = iter(map(len, prompts))
            found.costs += [
                (pictures, max((next(lengths) for _ in group), default=0))
                for pictures, group in groups
            ]
    return found


class EvalOrder:
    """Positions of an evaluation: annotations (or whole samples) as they lie in the shards, and the
    batches in which they are decoded."""

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
        each = np.ones(len(counts), np.int64) if whole_samples else np.asarray(counts, np.int64)
        self._counts, self._ends = each, np.cumsum(each, dtype=np.int64)
        self.whole_samples = whole_samples
        self.num_examples = int(self._ends[-1]) if len(each) else 0
        pictures, tokens = np.array(costs, np.int64).reshape(-1, 2).T
        self.batches: list[list[int]] = self._cut(np.lexsort((-tokens, -pictures)), size)
        """Positions of each batch; a sample's stand together, in one batch if they fit."""

    def _cut(self, samples: Ints, size: int) -> list[list[int]]:
        batches: list[list[int]] = []
        for sample in samples.tolist():
            end = int(self._ends[sample])
            own = list(range(end - int(self._counts[sample]), end))
            if batches and len(batches[-1]) + len(own) <= size:
                batches[-1] += own
            else:
                batches += [own[start : start + size] for start in range(0, len(own), size)]
        return batches

    def at(self, positions: Ints) -> tuple[Ints, Ints, Ints]:
        """Source (always 0), sample and annotation number of each position."""
        none = np.zeros_like(positions)
        samples = np.searchsorted(self._ends, positions, side="right")
        if self.whole_samples:
            return none, samples, np.full_like(positions, WHOLE_SAMPLE)
        return none, samples, positions - (self._ends - self._counts)[samples]
