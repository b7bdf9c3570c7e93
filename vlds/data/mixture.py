"""Several sources in exact proportions: positions of the stream -> source, sample, annotation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from vlds.data.epoch_order import EpochOrder
from vlds.data.order import hashed
from vlds.data.randomness import KEPT_TABLES, Ints, Recent, permutation

Unit = Literal["example", "micro_batch", "global_batch"]
"""What is of one task."""
SMALLEST_BLOCK = 64
LARGEST_BLOCK = 1 << 20


class SourceOrder(Protocol):
    """The order of one source's examples, as the mixture needs it."""

    @property
    def name(self) -> str:
        """Name of the source."""

    @property
    def size(self) -> int | None:
        """Annotations in an epoch; None where nobody knows."""

    def at(self, indices: Ints, lane: int = 0) -> tuple[Ints, Ints]:
        """Sample and annotation number of each index."""

    def fingerprint(self) -> dict[str, Any]:
        """What the order depends on, the same for all sources."""


@dataclass(frozen=True)
class NamedOrder:
    """A source of which the mixture knows no more than its name: it says when, not what."""

    name: str
    size: int | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def at(self, indices: Ints, lane: int = 0) -> tuple[Ints, Ints]:
        """The indices themselves: nobody knows what is there."""
        return indices, np.zeros_like(indices)

    def fingerprint(self) -> dict[str, Any]:
        """What the order depends on, the same for all sources."""
        return dict(self.about)


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


@dataclass(frozen=True)
class Phase:
    """From where on a mixture holds, and what the sources had given before: each begins there."""

    at: int = 0
    """Position in the stream."""
    given: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Source -> its examples so far, lane by lane; none for those that are not named."""


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
        orders: Sequence[SourceOrder],
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
        self._given_unit = unit_size
        self.common_units = lanes > 1 and unit_size > self.lane_size
        unit_size = self.lane_size if self.common_units else unit_size
        self.orders = list(orders)
        self.shares = list(shares)
        self._cumulative = list(accumulate(shares))
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
        self._block = Recent(self._block_table, KEPT_TABLES * lanes)
        self.phase = Phase()

    def at(self, positions: Ints) -> tuple[Ints, Ints, Ints]:
        """Source, sample and annotation number of each position of the phase."""
        positions = positions - self.phase.at
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
            given = self._given_before(source)[lane]
            samples[here], annotations[here] = self.orders[source].at(indices[here] + given, lane)
        return sources, samples, annotations

    def _given_before(self, source: int) -> Sequence[int]:
        return self.phase.given.get(self.orders[source].name, [0] * self.lanes)

    def given(self, position: int) -> dict[str, list[int]]:
        """Examples of each source before a position, lane by lane, those of earlier phases too."""
        counts = np.array([self._given_before(n) for n in range(len(self.orders))], np.int64)
        batches, slots = divmod(position - self.phase.at, self.lane_size * self.lanes)
        for lane in range(self.lanes):
            own = min(max(slots - lane * self.lane_size, 0), self.lane_size)
            units, within = divmod(batches * self.lane_size + own, self.unit_size)
            block, rows = divmod(units, self.block)
            sources, _ = self._block(block, 0 if self.common_units else lane)
            counts[:, lane] += self.quotas(block) * self.unit_size
            counts[:, lane] += np.bincount(sources[:rows], minlength=len(counts)) * self.unit_size
            counts[sources[rows], lane] += within
        return {o.name: row.tolist() for o, row in zip(self.orders, counts, strict=True)}

    def quotas(self, block: int) -> Ints:
        """Units each source has had before a block."""
        units = block * self.block
        return np.diff([0, *(c.numerator * units // c.denominator for c in self._cumulative)])

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
            "task_order": hashed([order.name for order in self.orders]),
            "block": self.block,
            "unit_size": self._given_unit,
            **self.orders[0].fingerprint(),
            "lanes": self.lanes,
            **with_lanes,
            "shares": {
                o.name: str(share) for o, share in zip(self.orders, self.shares, strict=True)
            },
        }


def mixture_of(fingerprint: Mapping[str, Any]) -> MixedOrder:
    """The mixture that a fingerprint is of: which source stands where, not what it gives there."""
    return MixedOrder(
        [NamedOrder(name) for name in fingerprint["shares"]],
        [Fraction(share) for share in fingerprint["shares"].values()],
        seed=fingerprint["seed"],
        unit_size=fingerprint["unit_size"],
        lanes=fingerprint["lanes"],
        batch_size=fingerprint.get("batch_size", 1),
    )


def mixed_order(
    names: Sequence[str],
    counts: Sequence[Sequence[NDArray[np.unsignedinteger[Any]]]],
    weights: Sequence[float],
    *,
    seed: int,
    unit: Unit,
    temperature: float | None,
    window: int,
    group: int,
    lanes: int,
    global_batch_size: int,
    micro_batch_size: int,
) -> MixedOrder:
    """The order of a run; `counts`: for each source and shard, the annotations of each sample."""
    orders = [
        EpochOrder(name, shards, seed=seed, window=window, group=group, lanes=lanes)
        for name, shards in zip(names, counts, strict=True)
    ]
    return MixedOrder(
        orders,
        mixing_shares(weights, [order.size for order in orders], temperature),
        seed=seed,
        unit_size=unit_size(unit, global_batch_size, micro_batch_size),
        lanes=lanes,
        batch_size=global_batch_size,
    )


def unit_size(unit: Unit, global_batch_size: int, micro_batch_size: int) -> int:
    """Examples of one task that follow one another."""
    sizes = {"example": 1, "micro_batch": micro_batch_size, "global_batch": global_batch_size}
    return sizes[unit]


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
