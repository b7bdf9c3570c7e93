"""How many bytes a second training reads, against what a store gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import inf
from textwrap import fill
from typing import Any

from vlds.data.order.mixed_order import mixing_shares
from vlds.data.streams.source import Source
from vlds.evaluation.sources import training_sources
from vlds.recipe.config import Recipe
from vlds.runtime.terminal import duration_text


@dataclass(frozen=True)
class Store:
    """What somebody has measured: how fast a run's shards come, and its steps."""

    rate: float
    """Bytes a second that all ranks get together."""
    step_s: float | None = None
    """Seconds of a step; None if they are to be forecast."""

    @classmethod
    def given(cls, store: str | None, step: str | None) -> Store | None:
        """From the words of a command: MB a second, and seconds; None without a store.

        Errors: ValueError that names the option.
        """
        if store is None:
            if step is not None:
                raise ValueError("--step-seconds without --store: give what the store gives, too")
            return None
        values = []
        for option, text in (("--store", store), ("--step-seconds", step)):
            try:
                value = None if text is None else float(text)
            except ValueError:
                value = 0.0
            if value is not None and not 0 < value < inf:  # false for NaN, too
                raise ValueError(f"{option} is {text!r}; give a number above 0")
            values.append(value)
        rate, step_s = values
        assert rate is not None
        return cls(rate * 1e6, step_s)


@dataclass(frozen=True)
class Reading:
    """What all ranks read."""

    examples: int
    """Of a step."""
    bytes_an_example: float
    """Mean, by the shares of the tasks, with as many annotations of a sample together as
    `data.group` says."""
    bytes_a_second: float
    """Of all ranks together."""
    epoch_bytes: int
    """Bytes of all shards, which a first epoch fetches."""
    step_s: float
    ranks: int
    store: float
    """Bytes a second that all ranks get together."""

    @property
    def fastest_step_s(self) -> float:
        """Seconds in which the store gives a step's examples."""
        return self.examples * self.bytes_an_example / self.store

    def text(self) -> str:
        """For people."""
        per_rank = self.bytes_a_second / self.ranks
        text = (
            f"A step of {self.step_s:.3g} s reads {self.examples:,} examples of "
            f"{self.bytes_an_example / 1e3:,.1f} kB: {rate(self.bytes_a_second)} for "
            f"{self.ranks:,} rank{'s' * (self.ranks > 1)}, {rate(per_rank)} each; the shards have "
            f"{self.epoch_bytes / 1e9:,.3g} GB."
        )
        share = self.bytes_a_second / self.store
        text += f" The store gives {rate(self.store)}, of which that is {share:.0%}"
        if share > 1:
            text += (
                f": until all is in caches, a step takes {self.fastest_step_s:.3g} s at least, and "
                f"the first epoch {duration_text(self.epoch_bytes / self.store)}"
            )
        return fill(f"{text}.", 80)

    def tree(self) -> dict[str, Any]:
        """For programs."""
        return {**asdict(self), "fastest_step_s": self.fastest_step_s}


def reading_of(recipe: Recipe, ranks: int, store: Store) -> Reading:
    """What a recipe's ranks read.

    Errors: ValueError if its data cannot be opened, or the time of a step is not known.
    """
    if store.step_s is None:
        raise ValueError("--store: how long a step takes is not known; give --step-seconds")
    sources = training_sources(recipe)
    size = max(recipe.batch_sizes.values())
    mean = bytes_an_example(recipe, sources)
    shards = sum(int(d.info.table.column("bytes").sum()) for s in sources for d in s.datasets)
    rate = size * mean / store.step_s
    return Reading(size, mean, rate, shards, store.step_s, ranks, store.rate)


def bytes_an_example(recipe: Recipe, sources: Sequence[Source]) -> float:
    """Bytes of the samples that are read for an example."""
    shares = mixing_shares(
        [source.weight for source in sources],
        [source.num_annotations for source in sources],
        recipe.data.temperature,
    )
    total = 0.0
    for source, share in zip(sources, shares, strict=True):
        size = sum(int(d.info.table.column("bytes").sum()) for d in source.datasets)
        samples = sum(dataset.info.samples for dataset in source.datasets)
        annotations = sum(dataset.info.annotations for dataset in source.datasets)
        # A group of annotations reads its sample once.
        together = min(recipe.data.group, annotations / samples)
        total += float(share) * size / samples / together
    return total


def rate(bytes_a_second: float) -> str:
    """A rate in GB, MB or kB a second."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if bytes_a_second >= unit:
            return f"{bytes_a_second / unit:,.3g} {name}/s"
    return f"{bytes_a_second / 1e3:,.3g} kB/s"
