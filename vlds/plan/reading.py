"""How many bytes a second training reads, against what a store gives."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from math import inf
from pathlib import Path
from textwrap import fill
from typing import Any

from vlds.data.order.mixed_order import mixing_shares
from vlds.data.shards.download import below, download, is_web, open_address, read_range
from vlds.data.shards.remote import AT_ONCE, is_url
from vlds.data.shards.store import open_dataset
from vlds.data.streams.source import Source
from vlds.evaluation.sources import training_sources
from vlds.recipe.config import Recipe
from vlds.runtime.folders import scratch_folder
from vlds.runtime.terminal import duration_text

MEASURE = "measure"
"""In place of a rate."""
MEASURE_S, PIECE, MOST_PIECES = 5.0, 16 << 20, 10_000
"""Seconds in which new pieces of shards are asked for, bytes of one, and how many at most."""


@dataclass(frozen=True)
class Store:
    """How fast a run's shards come, and its steps."""

    rate: float | None
    """Bytes a second that all ranks get together; None to measure what this machine gets."""
    step_s: float | None = None
    """Seconds of a step; None if they are to be forecast."""
    is_measured: bool = False
    """The rate is what this machine alone got."""

    @classmethod
    def given(cls, store: str | None, step: str | None) -> Store | None:
        """From the words of a command: MB a second or `MEASURE`, and seconds; None without a store.

        Errors: ValueError that names the option.
        """
        if store is None:
            if step is not None:
                raise ValueError("--step-seconds without --store: give what the store gives, too")
            return None
        values = []
        asked = None if store == MEASURE else store
        for option, text in (("--store", asked), ("--step-seconds", step)):
            try:
                value = None if text is None else float(text)
            except ValueError:
                value = 0.0
            if value is not None and not 0 < value < inf:  # false for NaN, too
                more = f", or {MEASURE}" * (option == "--store")
                raise ValueError(f"{option} is {text!r}; give a number above 0{more}")
            values.append(value)
        rate, step_s = values
        return cls(None if rate is None else rate * 1e6, step_s)

    def measured(self, recipe: Recipe) -> Store:
        """With a rate: the one that is given, or else what this machine gets of the recipe's
        training shards, in as many requests at once as in training.

        Errors: ValueError if the data cannot be opened or fetched.
        """
        if self.rate is not None:
            return self
        pieces = [piece for task in recipe.tasks.values() for piece in pieces_of(task.train)]
        pieces.sort(key=lambda piece: piece.offset)  # some of each shard first
        begin = time.monotonic()

        def get(piece: Piece) -> int:
            return piece.get() if time.monotonic() < begin + MEASURE_S else 0

        with ThreadPoolExecutor(AT_ONCE) as pool:
            came = sum(pool.map(get, pieces[:MOST_PIECES]))
        return replace(self, rate=came / (time.monotonic() - begin), is_measured=True)


@dataclass(frozen=True)
class Piece:
    """A part of a shard; all of it where a web server gives no parts."""

    folder: str
    shard: str
    offset: int
    size: int
    whole: int
    """Bytes of the shard."""

    def get(self) -> int:
        """Read it, and count its bytes."""
        if is_web(self.folder):
            files, root = open_address(self.folder)
            with scratch_folder() as scratch:
                download(files, below(root, self.shard), scratch / "shard", self.whole)
            return self.whole
        if is_url(self.folder):
            return len(read_range(self.folder, self.shard, self.offset, self.size, self.whole))
        with open(Path(self.folder) / self.shard, "rb", buffering=0) as file:
            # What the system has kept of it in memory says nothing of the disk. macOS lacks this.
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), self.offset, self.size, os.POSIX_FADV_DONTNEED)
            file.seek(self.offset)
            return len(file.read(self.size))


def pieces_of(folders: Sequence[str]) -> Iterator[Piece]:
    """The pieces of data sets."""
    for folder in folders:
        for shard in open_dataset(folder, copies=False).info.shards:
            size = shard.bytes if is_web(folder) else PIECE
            for offset in range(0, shard.bytes, size):
                part = min(size, shard.bytes - offset)
                yield Piece(folder, shard.name, offset, part, shard.bytes)


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
    is_measured: bool = False
    """It is what this machine alone got."""

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
        whom = "this machine, as measured now, " * self.is_measured
        text += f" The store gives {whom}{rate(self.store)}, of which that is {share:.0%}"
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
    assert store.rate is not None
    return Reading(
        size, mean, rate, shards, store.step_s, ranks, store.rate, is_measured=store.is_measured
    )


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
