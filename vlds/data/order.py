"""The order of examples: a pure function of (seed, position).

Nothing here has a state that matters: tables are computed from the seed when a position asks for
them and kept only for speed. So any number of ranks and workers sees the same global batches, and
resuming is a seek. Random numbers are raw Philox words, whose meaning no version of numpy changes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from fractions import Fraction
from hashlib import blake2b
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Value = TypeVar("Value")

SMALLEST_BLOCK = 64
LARGEST_BLOCK = 1 << 20
KEPT_TABLES = 3
WHOLE_SAMPLE = -1
"""Annotation number that stands for all annotations of a sample."""


class _Recent(Generic[Value]):
    """The last few results of a function."""

    def __init__(self, make: Callable[..., Value], kept: int = KEPT_TABLES) -> None:
        self._make = make
        self._most = kept
        self._kept: OrderedDict[Hashable, Value] = OrderedDict()

    def __call__(self, *key: int) -> Value:
        if key not in self._kept:
            self._kept[key] = self._make(*key)
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return self._kept[key]


def random_words(count: int, *key: str | int) -> NDArray[np.uint64]:
    """Random words that depend on the key alone."""
    digest = blake2b("/".join(map(str, key)).encode(), digest_size=16).digest()
    words: NDArray[np.uint64] = np.random.Philox(key=int.from_bytes(digest, "little")).random_raw(
        count
    )
    return words


def permutation(count: int, *key: str | int) -> Ints:
    """A permutation that depends on the key alone."""
    return np.argsort(random_words(count, *key), kind="stable")


class EpochOrder:
    """Annotations of one source, epoch after epoch, each epoch a fresh permutation.

    Shards are permuted and cut into windows of `window` shards; inside a window everything is
    permuted, so that only the window's shards are read at a time. With `group` k, up to k
    annotations of one sample (others in every epoch) stay together: their picture is decoded and
    encoded once.

    With `lanes` V the permuted shards are first cut into V stretches of equally many annotations,
    each with windows of its own: who reads one lane reads the shards of that stretch alone.
    """

    def __init__(
        self,
        name: str,
        counts: Sequence[NDArray[np.unsignedinteger[Any]]],
        *,
        seed: int,
        window: int = 64,
        group: int = 1,
        lanes: int = 1,
    ) -> None:
        """`counts`: for each shard, the annotations of each of its samples."""
        for what, value in (("window", window), ("group", group), ("lanes", lanes)):
            if value < 1:
                raise ValueError(f"{what}: got {value}; give at least 1")
        self.name = name
        self.seed = seed
        self.window = window
        self.group = group
        self.lanes = lanes
        self.counts = [shard.astype(np.int64) for shard in counts]
        self.first_sample = np.cumsum([0, *(len(shard) for shard in counts)])
        self.shard_sizes = np.array([shard.sum() for shard in self.counts], np.int64)
        self.size = int(self.shard_sizes.sum())
        """Annotations in an epoch."""
        if self.size == 0:
            raise ValueError(f"source {name}: its data sets hold no annotation to train on")
        if self.size < lanes:
            raise ValueError(
                f"lanes: {lanes} are more than the {self.size} annotations of source {name}; "
                "give fewer lanes"
            )
        self._shards = _Recent(self._permuted_shards, KEPT_TABLES * lanes)
        self._table = _Recent(self._window_table, KEPT_TABLES * lanes)

    def stretch(self, lane: int) -> tuple[int, int]:
        """Where a lane begins and ends among the annotations of an epoch."""
        return lane * self.size // self.lanes, (lane + 1) * self.size // self.lanes

    def at(self, indices: Ints, lane: int = 0) -> tuple[Ints, Ints]:
        """Sample number and annotation number in it, for each index of a lane (epochs follow one
        another)."""
        samples, annotations = np.empty_like(indices), np.empty_like(indices)
        start, end = self.stretch(lane)
        epochs, offsets = np.divmod(indices, end - start)
        offsets += start
        for epoch in np.unique(epochs).tolist():
            _, _, starts = self._shards(epoch, lane)
            windows = np.searchsorted(starts, offsets, side="right") - 1
            for number in np.unique(windows[epochs == epoch]).tolist():
                here = (epochs == epoch) & (windows == number)
                rows = offsets[here] - starts[number]
                table_samples, table_annotations = self._table(epoch, lane, number)
                samples[here], annotations[here] = table_samples[rows], table_annotations[rows]
        return samples, annotations

    def _permuted_shards(self, epoch: int, lane: int) -> tuple[Ints, int, Ints]:
        """A lane's shards in an epoch, how many annotations of the first are another lane's, and
        where in the epoch each window starts."""
        shards = permutation(len(self.counts), self.seed, "shards", self.name, epoch)
        ends = np.cumsum(self.shard_sizes[shards])
        start, end = self.stretch(lane)
        first = int(np.searchsorted(ends, start, side="right"))
        last = int(np.searchsorted(ends, end, side="left"))
        before = int(ends[first - 1]) if first else 0
        starts = np.concatenate([[start], ends[first + self.window - 1 : last : self.window]])
        return shards[first : last + 1], start - before, starts

    def _window_table(self, epoch: int, lane: int, number: int) -> tuple[Ints, Ints]:
        """Samples and annotations of a window, in their order."""
        shards, skipped, starts = self._shards(epoch, lane)
        shards = shards[number * self.window : (number + 1) * self.window]
        end = int(starts[number + 1]) if number + 1 < len(starts) else self.stretch(lane)[1]
        own = slice(skipped if number == 0 else 0, None)
        counts = np.concatenate([self.counts[s] for s in shards])
        samples = np.concatenate(
            [np.arange(self.first_sample[s], self.first_sample[s + 1]) for s in shards]
        )
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        within = within[own][: end - int(starts[number])]
        row_samples = np.repeat(samples, counts)[own][: len(within)]
        key: tuple[str | int, ...] = (self.seed, "window", self.name, epoch, number)
        if self.lanes > 1:
            key = (*key, "lane", lane)
        rows = permutation(len(within), *key)
        if self.group > 1:
            # Stable sort by sample: each sample's annotations in random order, side by side.
            begins = np.diff(row_samples, prepend=-1) != 0
            rows = rows[np.argsort(np.cumsum(begins)[rows], kind="stable")]
            groups = np.cumsum(begins | (within % self.group == 0)) - 1
            words = random_words(int(groups[-1]) + 1, *key, "groups")
            rows = rows[np.argsort(words[groups], kind="stable")]
        return row_samples[rows], within[rows]


def mixing_shares(
    weights: Sequence[float], sizes: Sequence[int], temperature: float | None
) -> list[Fraction]:
    """Exact shares of the sources: weight x size^(1/temperature), or the weights alone for None.

    Temperature 1 is proportional to size; the higher, the more equal.
    """
    if temperature is not None and not temperature > 0:
        raise ValueError(f"temperature: got {temperature}; give a number above 0, or none")
    exponent = 0.0 if temperature is None else 1 / temperature
    parts = []
    for weight, size in zip(weights, sizes, strict=True):
        if not 0 < weight < float("inf"):
            raise ValueError(f"weight: got {weight}; give a number above 0")
        # repr: 0.7 means 7/10, not the binary fraction next to it.
        parts.append(Fraction(repr(float(weight))) * Fraction(round(size**exponent * 10**6), 10**6))
    return [part / sum(parts) for part in parts]


class MixedOrder:
    """Positions of the stream -> source, sample, annotation.

    The sources take turns in units of `unit_size` examples. In every block of `block` units each
    source has its exact share within one unit, for ever: its units before block k are
    floor(C[d] * k * block) - floor(C[d-1] * k * block), C the cumulative shares: a closed form, so
    one can seek. Inside a block the units are permuted. Small sources begin new epochs earlier.

    With `lanes` V the batch's slots are cut into V equal parts, and each part has a mixture of its
    own: slot i of every batch of `batch_size` reads lane i * V // batch_size of each source. Which
    shards a rank opens then depends on its slots, and the order on V, not on the number of ranks.
    """

    def __init__(
        self,
        orders: Sequence[EpochOrder],
        shares: Sequence[Fraction],
        *,
        seed: int,
        unit_size: int = 1,
        lanes: int = 1,
        batch_size: int = 1,
    ) -> None:
        """`batch_size`: examples of a global batch; it matters with several lanes only."""
        assert len(orders) == len(shares)
        assert sum(shares) == 1
        self.lanes = lanes
        self.lane_size = check_lanes(lanes, batch_size, unit_size)
        self.common_units = lanes > 1 and unit_size > self.lane_size
        unit_size = self.lane_size if self.common_units else unit_size
        self.orders = list(orders)
        self.shares = list(shares)
        self.seed = seed
        self.unit_size = unit_size
        self.block = SMALLEST_BLOCK
        # With less than one unit a block, a source's quota could become negative.
        while min(shares) * self.block < 1:
            self.block *= 2
        if self.block > LARGEST_BLOCK:
            worst = orders[shares.index(min(shares))].name
            raise ValueError(
                f"source {worst}: its share of the mixture is {float(min(shares)):.2g}, too small "
                "to come up; give it a larger weight or drop it"
            )
        self._block = _Recent(self._block_table, KEPT_TABLES * lanes)

    def at(self, positions: Ints) -> tuple[Ints, Ints, Ints]:
        """Source, sample and annotation number of each position."""
        if self.lanes == 1:
            return self._at(positions, 0)
        batches, slots = np.divmod(positions, self.lane_size * self.lanes)
        lanes, within = np.divmod(slots, self.lane_size)
        in_lane = batches * self.lane_size + within
        found = np.empty((3, len(positions)), np.int64)
        for lane in np.unique(lanes).tolist():
            here = lanes == lane
            found[:, here] = self._at(in_lane[here], lane)
        return found[0], found[1], found[2]

    def _at(self, positions: Ints, lane: int) -> tuple[Ints, Ints, Ints]:
        """The same for positions in a lane."""
        units, within = np.divmod(positions, self.unit_size)
        blocks, rows = np.divmod(units, self.block)
        sources, indices = np.empty_like(positions), np.empty_like(positions)
        for block in np.unique(blocks).tolist():
            here = blocks == block
            table_sources, table_units = self._block(block, 0 if self.common_units else lane)
            sources[here] = table_sources[rows[here]]
            indices[here] = table_units[rows[here]] * self.unit_size + within[here]
        samples, annotations = np.empty_like(positions), np.empty_like(positions)
        for source in np.unique(sources).tolist():
            here = sources == source
            samples[here], annotations[here] = self.orders[source].at(indices[here], lane)
        return sources, samples, annotations

    def quotas(self, block: int) -> Ints:
        """Units each source has had before a block."""
        floors = [0]
        total = Fraction(0)
        for share in self.shares:
            total += share
            floors.append(total.numerator * block * self.block // total.denominator)
        return np.array(floors[1:], np.int64) - np.array(floors[:-1], np.int64)

    def _block_table(self, block: int, lane: int) -> tuple[Ints, Ints]:
        """For each unit of a lane's block: its source, and which of the source's units it is."""
        before = self.quotas(block)
        sizes = self.quotas(block + 1) - before
        sources = np.repeat(np.arange(len(sizes)), sizes)
        key = (block, "lane", lane) if lane else (block,)
        sources = sources[permutation(self.block, self.seed, "mix", *key)]
        units = np.empty(self.block, np.int64)
        for source, first in enumerate(before.tolist()):
            here = sources == source
            units[here] = first + np.arange(np.count_nonzero(here))
        return sources, units

    def fingerprint(self) -> dict[str, Any]:
        """Everything the order depends on, but for what is in the data sets; JSON-able."""
        with_lanes = {"batch_size": self.lane_size * self.lanes} if self.lanes > 1 else {}
        return {
            "seed": self.seed,
            "sources": [order.name for order in self.orders],
            "block": self.block,
            "unit_size": self.unit_size,
            "window": self.orders[0].window,
            "group": self.orders[0].group,
            "lanes": self.lanes,
            **with_lanes,
            "shares": {
                o.name: str(share) for o, share in zip(self.orders, self.shares, strict=True)
            },
        }


def check_lanes(lanes: int, batch_size: int, unit_size: int) -> int:
    """Slots of a batch that read one lane.

    Errors: ValueError where the lanes do not divide the batch, or cut a unit.
    """
    if lanes == 1:
        return batch_size
    size = batch_size // lanes
    if batch_size % lanes:
        raise ValueError(
            f"lanes: {lanes} do not divide global_batch_size {batch_size}; give a divisor of it"
        )
    if unit_size < batch_size and size % unit_size:
        raise ValueError(
            f"lanes: {lanes} leave {size} examples of a batch to each, which cuts the units of "
            f"{unit_size} that are of one task; give {batch_size // unit_size} lanes or a divisor "
            "of that, or data.unit example"
        )
    return size


class PlainOrder:
    """Positions of an evaluation: annotations (or whole samples) as they lie in the shards."""

    def __init__(self, counts: NDArray[np.unsignedinteger[Any]], *, whole_samples: bool) -> None:
        """`counts`: annotations of each sample."""
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._counts = counts.astype(np.int64)
        self.whole_samples = whole_samples
        total = len(counts) if whole_samples else int(self._ends[-1]) if len(counts) else 0
        self.size = total

    def at(self, positions: Ints) -> tuple[Ints, Ints, Ints]:
        """Source (always 0), sample and annotation number of each position below `size`."""
        none = np.zeros_like(positions)
        if self.whole_samples:
            return none, positions, np.full_like(positions, WHOLE_SAMPLE)
        samples = np.searchsorted(self._ends, positions, side="right")
        return none, samples, positions - (self._ends - self._counts)[samples]


def differences(saved: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> list[str]:
    """What differs between two fingerprints, a line each."""
    lines = []
    for key in sorted(set(saved) | set(now)):
        one, other = saved.get(key, "nothing"), now.get(key, "nothing")
        name = f"{path}.{key}" if path else str(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            lines += differences(one, other, name)
        elif one != other:
            lines.append(f"{name}: {_short(one)} -> {_short(other)}")
    return lines


def _short(value: Any) -> str:
    text = "something" if isinstance(value, Mapping) else str(value)
    return text if len(text) <= 24 else text[:24] + "..."
