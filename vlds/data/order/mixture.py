"""Several sources in exact proportions: positions of the stream -> source, sample, annotation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate
from math import lcm
from typing import Any, Literal, Protocol

import numpy as np

from vlds.data.order.mixing_shares import mixing_shares
from vlds.data.order.permutation import hashed
from vlds.data.order.randomness import KEPT_TABLES, Ints, Recent, permutation

Unit = Literal["example", "global_batch"]
"""What is of one task."""
SMALLEST_BLOCK = 64
LARGEST_BLOCK = 1 << 20
LARGEST_EXACT_BLOCK = 1 << 16


class BatchSource(Protocol):
    """A source, as far as the size of its batches goes."""

    @property
    def batch_size(self) -> int | None:
        """Examples of its batches, where batches are of one task; None: as many as the others'."""


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


@dataclass(frozen=True)
class Phase:
    """From where on a mixture holds, and what the sources had given before: each begins there."""

    at: int = 0
    """Position in the stream."""
    given: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Source -> its examples so far, lane by lane; none for those that are not named."""


class MixedOrder:
    """Positions of the stream -> source, sample, annotation.

    The sources take turns in units: single examples, or whole global batches where `batch_sizes`
    are given. In every block of `block` units each source has its exact share within one unit, for
    ever: its units before block k are floor(C[d] * k * block) - floor(C[d-1] * k * block), C the
    cumulative shares: a closed form, so one can seek. Inside a block the units are permuted. Small
    sources begin new epochs earlier.

    A global batch begins every `stride` positions. Batches of one task may be smaller than the
    stride; the positions behind their last example stay unused.

    With `lanes` V the batch's slots are cut into V equal parts: slot i of a batch of b examples
    reads lane i * V // b of each source. Which shards a rank opens then depends on its slots, and
    the order on V, not on the number of ranks. Mixed batches have a mixture of their own in each
    lane.
    """

    def __init__(
        self,
        orders: Sequence[SourceOrder],
        shares: Sequence[Fraction],
        *,
        seed: int,
        batch_size: int = 1,
        batch_sizes: Sequence[int] | None = None,
        lanes: int = 1,
    ) -> None:
        """`shares` are of units. `batch_sizes`: examples of each source's batches, where batches
        are of one task; otherwise `batch_size` is that of all, and tasks are mixed within it."""
        assert len(orders) == len(shares)
        assert sum(shares) == 1
        self.lanes = lanes
        self.orders = list(orders)
        self.shares = list(shares)
        self.batch_sizes = None if batch_sizes is None else np.array(batch_sizes, np.int64)
        self.stride = batch_size if batch_sizes is None else max(batch_sizes)
        for size in [batch_size] if batch_sizes is None else batch_sizes:
            check_lanes(lanes, size)
        self._cumulative = list(accumulate(shares))
        self.seed = seed
        self.block = self._block_size()
        self._block = Recent(self._block_table, KEPT_TABLES * lanes)
        self.phase = Phase()

    def _block_size(self) -> int:
        """Units of a block: batches of one task stand in blocks with exact shares where that takes
        no more than LARGEST_EXACT_BLOCK, so that blocks of all tasks' batches end with epochs.

        Errors: ValueError where a source would get less than one unit of the largest block.
        """
        if self.batch_sizes is not None:
            exact = lcm(*(share.denominator for share in self.shares))
            if exact <= LARGEST_EXACT_BLOCK:
                return exact * -(-SMALLEST_BLOCK // exact)
        # With less than one unit a block, a source's quota could become negative.
        block = SMALLEST_BLOCK
        while min(self.shares) * block < 1:
            block *= 2
        if block > LARGEST_BLOCK:
            worst = self.orders[self.shares.index(min(self.shares))].name
            raise ValueError(
                f"source {worst}: its share of the mixture is {float(min(self.shares)):.2g}, too "
                "small to come up; give it a larger weight or drop it"
            )
        return block

    def sizes_at(self, starts: Ints) -> Ints:
        """Examples of the global batches that begin at these positions."""
        if self.batch_sizes is None:
            return np.full_like(starts, self.stride)
        sources, _ = self._units((starts - self.phase.at) // self.stride, 0)
        return self.batch_sizes[sources]

    def at(self, positions: Ints) -> tuple[Ints, Ints, Ints]:
        """Source, sample and annotation number of each position of the phase."""
        positions = positions - self.phase.at
        batches, slots = np.divmod(positions, self.stride)
        if self.batch_sizes is not None:
            sources, units = self._units(batches, 0)
            lane_sizes = self.batch_sizes[sources] // self.lanes
            lanes, within = np.divmod(slots, lane_sizes)
            indices = units * lane_sizes + within
        elif self.lanes == 1:
            lanes = np.zeros_like(positions)
            sources, indices = self._units(positions, 0)
        else:
            lane_size = self.stride // self.lanes
            lanes, within = np.divmod(slots, lane_size)
            in_lane = batches * lane_size + within
            sources, indices = np.empty_like(positions), np.empty_like(positions)
            for lane in np.unique(lanes).tolist():
                here = lanes == lane
                sources[here], indices[here] = self._units(in_lane[here], lane)
        return sources, *self._annotations(sources, indices, lanes)

    def _units(self, units: Ints, lane: int) -> tuple[Ints, Ints]:
        """The source of each unit of a lane, and which of the source's units it is."""
        blocks, rows = np.divmod(units, self.block)
        sources, numbers = np.empty_like(units), np.empty_like(units)
        for block in np.unique(blocks).tolist():
            here = blocks == block
            table_sources, table_units = self._block(block, lane)
            sources[here], numbers[here] = table_sources[rows[here]], table_units[rows[here]]
        return sources, numbers

    def _annotations(self, sources: Ints, indices: Ints, lanes: Ints) -> tuple[Ints, Ints]:
        """Sample and annotation number of the n-th example of a source's lane in this phase."""
        samples, annotations = np.empty_like(indices), np.empty_like(indices)
        for source in np.unique(sources).tolist():
            given = self._given_before(source)
            for lane in np.unique(lanes[sources == source]).tolist():
                here = (sources == source) & (lanes == lane)
                samples[here], annotations[here] = self.orders[source].at(
                    indices[here] + given[lane], lane
                )
        return samples, annotations

    def _given_before(self, source: int) -> Sequence[int]:
        return self.phase.given.get(self.orders[source].name, [0] * self.lanes)

    def given(self, position: int) -> dict[str, list[int]]:
        """Examples of each source before a position, lane by lane, those of earlier phases too."""
        counts = np.array([self._given_before(n) for n in range(len(self.orders))], np.int64)
        batches, slots = divmod(position - self.phase.at, self.stride)
        if self.batch_sizes is not None:
            counts += (self._units_before(batches, 0) * self.batch_sizes // self.lanes)[:, None]
            source = int(self._units(np.array([batches]), 0)[0][0])
            counts[source] += self._slots_in_lanes(slots, int(self.batch_sizes[source]))
        else:
            whole = batches * (self.stride // self.lanes)
            for lane, part in enumerate(self._slots_in_lanes(slots, self.stride).tolist()):
                counts[:, lane] += self._units_before(whole + part, lane)
        return {o.name: row.tolist() for o, row in zip(self.orders, counts, strict=True)}

    def _slots_in_lanes(self, slots: int, batch_size: int) -> Ints:
        """How many of a batch's first slots are each lane's."""
        lane_size = batch_size // self.lanes
        return np.clip(slots - np.arange(self.lanes) * lane_size, 0, lane_size)

    def _units_before(self, unit: int, lane: int) -> Ints:
        """Units of each source before a unit of a lane."""
        block, rows = divmod(unit, self.block)
        sources, _ = self._block(block, lane)
        return self.quotas(block) + np.bincount(sources[:rows], minlength=len(self.orders))

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

    def steps_an_epoch(self) -> dict[str, float]:
        """Optimizer steps in which each source of known size gives all of its examples once."""
        sizes = [self.stride] * len(self.orders)
        if self.batch_sizes is not None:
            sizes = self.batch_sizes.tolist()
        return {
            order.name: order.size / size / float(share)
            for order, size, share in zip(self.orders, sizes, self.shares, strict=True)
            if order.size is not None
        }

    def fingerprint(self) -> dict[str, Any]:
        """Everything the order depends on, but for what is in the data sets; JSON-able."""
        names = [order.name for order in self.orders]
        with_lanes = {"batch_size": self.stride} if self.lanes > 1 else {}
        sizes = None if self.batch_sizes is None else self.batch_sizes.tolist()
        return {
            "seed": self.seed,
            "task_order": hashed(names),
            "block": self.block,
            "unit_size": 1 if sizes is None else dict(zip(names, sizes, strict=True)),
            **self.orders[0].fingerprint(),
            "lanes": self.lanes,
            **with_lanes,
            "shares": {name: str(share) for name, share in zip(names, self.shares, strict=True)},
        }


def mixture_of(fingerprint: Mapping[str, Any]) -> MixedOrder:
    """The mixture that a fingerprint is of: which source stands where, not what it gives there."""
    names = list(fingerprint["shares"])
    units = fingerprint["unit_size"]
    return MixedOrder(
        [NamedOrder(name) for name in names],
        [Fraction(share) for share in fingerprint["shares"].values()],
        seed=fingerprint["seed"],
        batch_size=fingerprint.get("batch_size", 1),
        batch_sizes=None if units == 1 else [units[name] for name in names],
        lanes=fingerprint["lanes"],
    )


def batch_sizes(
    sources: Sequence[BatchSource], unit: Unit, global_batch_size: int
) -> list[int] | None:
    """Examples of each source's batches, where batches are of one task."""
    if unit == "example":
        return None
    return [source.batch_size or global_batch_size for source in sources]


def mixed_order(
    orders: Sequence[SourceOrder],
    weights: Sequence[float],
    *,
    seed: int,
    temperature: float | None,
    global_batch_size: int,
    batch_sizes: Sequence[int] | None,
    lanes: int = 1,
) -> MixedOrder:
    """The mixture of a run; `batch_sizes` only where batches are of one task.

    Errors: ValueError where `temperature` needs the size of a source that is not known.
    """
    sizes = [order.size for order in orders]
    if temperature is not None and None in sizes:
        name = orders[sizes.index(None)].name
        raise ValueError(
            f"data.temperature: got {temperature}, but nobody knows how many examples the "
            f"shards of {name} hold; give tasks.{name}.weight instead, or index the shards"
        )
    return MixedOrder(
        orders,
        mixing_shares(weights, [size or 1 for size in sizes], temperature, batch_sizes),
        seed=seed,
        batch_size=global_batch_size,
        batch_sizes=batch_sizes,
        lanes=lanes,
    )


def check_lanes(lanes: int, batch_size: int, field: str = "global_batch_size") -> None:
    """Check that each lane gets equally many slots of a batch; `field` sets the batch's size.

    Errors: ValueError where the lanes do not divide it.
    """
    if lanes < 1:
        raise ValueError(f"data.lanes: got {lanes}; give at least 1")
    if batch_size % lanes:
        raise ValueError(
            f"data.lanes: {lanes} do not divide {field} {batch_size}; give a divisor of it"
        )
