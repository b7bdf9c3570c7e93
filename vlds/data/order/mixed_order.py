"""Several sources in exact proportions: positions of the stream -> source, sample, annotation.

`BatchCut` shares a global batch among ranks, `mixing_shares` makes a recipe's weights exact shares,
and `MixedOrder` says which example stands at which position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate, pairwise
from math import ceil, lcm
from typing import Any, TypeAlias

import numpy as np

from vlds.data.order.epoch_order import (
    KEPT_TABLES,
    EpochOrder,
    Ints,
    NamedOrder,
    Recent,
    hashed,
    permutation,
)


@dataclass(frozen=True)
class BatchCut:
    """How ranks share a global batch, for any batch size and any number of ranks.

    The slots of a global batch are cut into one consecutive share per rank; shares differ by at
    most one row. A rank computes its share in micro-batches, and all ranks compute equally many,
    because ZeRO's collectives run in every forward and backward pass. The loss has one coefficient
    per example (vlds/training/loss.py), so the cut changes neither loss nor gradient.
    """

    world_size: int = 1
    micro_batch_size: int | None = None
    """Most examples a rank holds at once; None: its whole share."""

    def check(self, batch_size: int, field: str = "data.global_batch_size") -> None:
        """Errors: ValueError that names the batch size's field if a rank would get no example."""
        if batch_size < self.world_size:
            plural = "s" * (batch_size > 1)
            raise ValueError(
                f"{field}: {batch_size} example{plural} for {self.world_size} ranks; give at least "
                f"one example per rank, or start {batch_size} rank{plural and 's or fewer'}"
            )

    def accumulation_steps(self, batch_size: int) -> int:
        """Micro-batches that every rank computes in an optimizer step."""
        # -(-a // b) is a / b rounded up: 10 slots on 4 ranks make a share of 3, in pieces of 2
        # that is two steps.
        largest_share = -(-batch_size // self.world_size)
        return -(-largest_share // (self.micro_batch_size or largest_share))

    def pieces(self, batch_size: int, global_rank: int) -> list[range]:
        """Slots of each of a rank's micro-batches.

        A piece is empty only if micro-batches hold one example and another rank has one more.
        """
        # 10 slots on 4 ranks are cut at 0, 2, 5, 7, 10; rank 1 computes 2 to 4, as [2] and [3, 4].
        start = global_rank * batch_size // self.world_size
        stop = (global_rank + 1) * batch_size // self.world_size
        # All ranks take as many steps as the largest share needs: collectives wait for all.
        steps = self.accumulation_steps(batch_size)
        edges = [start + step * (stop - start) // steps for step in range(steps + 1)]
        return [range(*edge) for edge in pairwise(edges)]

    def largest_piece(self, batch_size: int) -> int:
        """Examples of the largest micro-batch of any rank."""
        largest_share = -(-batch_size // self.world_size)
        return -(-largest_share // self.accumulation_steps(batch_size))

    def smallest_piece(self, batch_size: int) -> int:
        """Examples of the smallest micro-batch of any rank; a rank without a row computes one that
        does not count."""
        return max(1, batch_size // self.world_size // self.accumulation_steps(batch_size))

    def ranks_of(self, slots: Ints, batch_size: int) -> Ints:
        """The global rank that computes each slot."""
        # The inverse of the cuts in `pieces`: the last rank r with r * batch_size // world_size
        # <= slot, that is r * batch_size < (slot + 1) * world_size.
        return ((slots + 1) * self.world_size - 1) // batch_size

    def lanes_read(self, lanes: int, batch_size: int, ranks: range) -> int:
        """How many lanes of a global batch these global ranks read."""
        slots = np.arange(batch_size)
        ours = np.isin(self.ranks_of(slots, batch_size), ranks)
        return len(np.unique(slots[ours] * lanes // batch_size))


def mixing_shares(
    weights: Sequence[float],
    sizes: Sequence[int],
    temperature: float | None,
    batch_sizes: Sequence[int] | None = None,
) -> list[Fraction]:
    """Exact shares of the sources: weight x size^(1/temperature), or the weights alone for None.

    Temperature 1 is proportional to size; higher temperatures are more equal. The shares are of
    examples, or of batches if `batch_sizes` are given (batches of one task). Then sizes count in
    whole batches, so that temperature 1 gives ceil(size / batch size) batches of each source.
    """
    if temperature is not None and not temperature > 0:
        raise ValueError(f"temperature: got {temperature}; give a number above 0, or none")
    exponent = 0.0 if temperature is None else 1 / temperature
    parts = []
    for weight, size, batch_size in zip(
        weights, sizes, batch_sizes or [1] * len(sizes), strict=True
    ):
        if not 0 < weight < float("inf"):
            raise ValueError(f"weight: got {weight}; give a number above 0")
        # The next epoch fills up a source's last batch, which therefore counts as a whole one.
        whole = -(-size // batch_size) * batch_size
        # repr: 0.7 means 7/10, not the binary fraction next to it. Powers are rounded to
        # millionths, so that the last bits of a machine's pow() do not decide the order.
        part = Fraction(repr(float(weight))) * Fraction(round(whole**exponent * 10**6), 10**6)
        parts.append(part / batch_size)
    return [part / sum(parts) for part in parts]


def steps_in(
    epochs: float, sizes: Sequence[int], global_batch_size: int, batch_sizes: Sequence[int] | None
) -> int:
    """Optimizer steps in which the sources together give `epochs` times the examples that they
    hold; for batches of one task, `epochs` times the batches that they fill."""
    exact = Fraction(repr(float(epochs)))
    if batch_sizes is None:
        return ceil(exact * sum(sizes) / global_batch_size)
    # Each source's last batch counts as a whole one, as in `mixing_shares`.
    batches = (-(-size // batch) for size, batch in zip(sizes, batch_sizes, strict=True))
    return ceil(exact * sum(batches))


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
    """The mixture of a run; `batch_sizes` only for batches of one task.

    Errors: ValueError if `temperature` needs the size of a source whose size is unknown.
    """
    sizes = [order.size for order in orders]
    if temperature is not None and None in sizes:
        name = orders[sizes.index(None)].name
        raise ValueError(
            f"data.temperature: got {temperature}, but the number of examples in the shards of "
            f"{name} is unknown; give tasks.{name}.weight instead, or index the shards"
        )
    return MixedOrder(
        orders,
        mixing_shares(weights, [size or 1 for size in sizes], temperature, batch_sizes),
        seed=seed,
        batch_size=global_batch_size,
        batch_sizes=batch_sizes,
        lanes=lanes,
    )


def mixture_of(fingerprint: Mapping[str, Any]) -> MixedOrder:
    """Rebuild a mixture from its fingerprint: which source comes when, without its samples."""
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


SMALLEST_BLOCK = 64
"""Units."""
LARGEST_BLOCK = 1 << 20
"""Units. A source that gets less than one of them is refused."""
LARGEST_EXACT_BLOCK = 1 << 16
"""Units. For batches of one task, blocks up to this size make all shares exact."""
SourceOrder: TypeAlias = EpochOrder | NamedOrder


@dataclass(frozen=True)
class Phase:
    """Where a mixture begins, and how far each source was then."""

    at: int = 0
    """Position in the stream."""
    given: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Source -> its examples before, lane by lane; zero for unnamed sources."""


class MixedOrder:
    """Positions of the stream -> source, sample, annotation.

    The sources take turns in units: single examples, or whole global batches if `batch_sizes` are
    given. Every block of `block` units gives each source its exact share, to within one unit: the
    units of source d before block k are floor(C[d] * k * block) - floor(C[d-1] * k * block), with C
    the cumulative shares. This is a closed form, so one can seek. Inside a block the units are
    permuted. Small sources start new epochs earlier.

    A global batch begins every `stride` positions. Batches of one task may be smaller than the
    stride; the positions behind their last example stay unused.

    With `lanes` V the batch's slots are cut into V equal parts: slot i of a batch of b examples
    reads lane i * V // b of each source. So the shards that a rank opens depend on its slots, and
    the order depends on V, not on the number of ranks. Each lane mixes its examples separately.
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
        """`shares` are of units. `batch_sizes`: examples of each source's batches, if each batch
        holds one task; otherwise tasks are mixed in batches of `batch_size`."""
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
        """Units of a block. For batches of one task the block makes all shares exact, if it is not
        larger than LARGEST_EXACT_BLOCK: then blocks end where epochs end.

        Errors: ValueError if a source would get less than one unit of the largest block.
        """
        if self.batch_sizes is not None:
            exact = lcm(*(share.denominator for share in self.shares))
            if exact <= LARGEST_EXACT_BLOCK:
                return exact * -(-SMALLEST_BLOCK // exact)  # a multiple of it, rounded up
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
        """Source, sample and annotation index of each position of the phase."""
        # Within a phase everything counts from its beginning; examples of earlier phases are added
        # last, in _annotations.
        positions = positions - self.phase.at
        batches, slots = np.divmod(positions, self.stride)
        if self.batch_sizes is not None:
            # A batch holds one task, so all lanes of it come from one unit.
            sources, units = self._units(batches, 0)
            lane_sizes = self.batch_sizes[sources] // self.lanes
            lanes, within = np.divmod(slots, lane_sizes)
            indices = units * lane_sizes + within
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
        """The source of each unit of a lane, and its index among the source's units."""
        # A seek computes the blocks that it touches, and none before them.
        blocks, rows = np.divmod(units, self.block)
        sources, indices = np.empty_like(units), np.empty_like(units)
        for block in np.unique(blocks).tolist():
            here = blocks == block
            table_sources, table_units = self._block(block, lane)
            sources[here], indices[here] = table_sources[rows[here]], table_units[rows[here]]
        return sources, indices

    def _annotations(self, sources: Ints, indices: Ints, lanes: Ints) -> tuple[Ints, Ints]:
        """Sample and annotation of the n-th example of a source's lane in this phase."""
        samples, annotations = np.empty_like(indices), np.empty_like(indices)
        for source in np.unique(sources).tolist():
            # A source that an earlier phase has read continues where it stopped.
            given = self.phase.given.get(self.orders[source].name, [0] * self.lanes)
            for lane in np.unique(lanes[sources == source]).tolist():
                here = (sources == source) & (lanes == lane)
                samples[here], annotations[here] = self.orders[source].at(
                    indices[here] + given[lane], lane
                )
        return samples, annotations

    def given(self, position: int) -> dict[str, list[int]]:
        """Examples of each source before a position, lane by lane, with those of earlier phases."""
        zero = [0] * self.lanes
        counts = np.array([self.phase.given.get(o.name, zero) for o in self.orders], np.int64)
        # Whole batches before the position, and the first slots of the one that is under way.
        batches, slots = divmod(position - self.phase.at, self.stride)
        size, source = self.stride, 0
        if self.batch_sizes is not None:
            source = int(self._units(np.array([batches]), 0)[0][0])
            size = int(self.batch_sizes[source])
        # Lane v holds the slots from v * lane_size on: those before are clipped away, and so are
        # those of the next lanes. The first 5 slots of 8, in 4 lanes -> 2 2 1 0.
        lane_size = size // self.lanes
        parts = np.clip(slots - np.arange(self.lanes) * lane_size, 0, lane_size)
        if self.batch_sizes is not None:
            # Each lane has an equal part of every batch.
            counts += (self._units_before(batches, 0) * self.batch_sizes // self.lanes)[:, None]
            counts[source] += parts
        else:
            for lane, part in enumerate(parts.tolist()):
                counts[:, lane] += self._units_before(batches * lane_size + part, lane)
        return {o.name: row.tolist() for o, row in zip(self.orders, counts, strict=True)}

    def _units_before(self, unit: int, lane: int) -> Ints:
        """Units of each source before a unit of a lane."""
        block, rows = divmod(unit, self.block)
        sources, _ = self._block(block, lane)
        return self.quotas(block) + np.bincount(sources[:rows], minlength=len(self.orders))

    def quotas(self, block: int) -> Ints:
        """Units that each source gets before a block."""
        # Exact integers: floats would give a unit to two sources, or to none, far into a run.
        units = block * self.block
        return np.diff([0, *(c.numerator * units // c.denominator for c in self._cumulative)])

    def _block_table(self, block: int, lane: int) -> tuple[Ints, Ints]:
        """For each unit of a lane's block: its source, and its index among the source's units."""
        before = self.quotas(block)
        sizes = self.quotas(block + 1) - before
        # Two units of source 0 and one of source 1 are 0 0 1, then permuted to, say, 0 1 0. With 4
        # and 2 units before this block, the indices are 4 2 5.
        sources = np.repeat(np.arange(len(sizes)), sizes)
        # Lane 0 draws as a mixture without lanes does.
        key = (block, "lane", lane) if lane else (block,)
        sources = sources[permutation(self.block, self.seed, "mix", *key)]
        units = np.empty(self.block, np.int64)
        for source, first in enumerate(before.tolist()):
            here = sources == source
            units[here] = first + np.arange(np.count_nonzero(here))
        return sources, units

    def steps_an_epoch(self) -> dict[str, float]:
        """Optimizer steps in which each source of known size gives each example once."""
        sizes = [self.stride] * len(self.orders)
        if self.batch_sizes is not None:
            sizes = self.batch_sizes.tolist()
        return {
            order.name: order.size / size / float(share)
            for order, size, share in zip(self.orders, sizes, self.shares, strict=True)
            if order.size is not None
        }

    def fingerprint(self) -> dict[str, Any]:
        """Everything the order depends on, except the content of the data sets; JSON-able."""
        names = [order.name for order in self.orders]
        # Without lanes the order does not depend on the size of mixed batches, so a resumed run
        # may change it.
        with_lanes = {"batch_size": self.stride} if self.lanes > 1 else {}
        sizes = None if self.batch_sizes is None else self.batch_sizes.tolist()
        return {
            "seed": self.seed,
            "task_order": hashed(names),
            "block": self.block,
            "unit_size": 1 if sizes is None else dict(zip(names, sizes, strict=True)),
            **self.orders[0].about,
            "lanes": self.lanes,
            **with_lanes,
            "shares": {name: str(share) for name, share in zip(names, self.shares, strict=True)},
        }


def check_lanes(lanes: int, batch_size: int, field: str = "global_batch_size") -> None:
    """Errors: ValueError if the lanes do not divide a batch, whose size `field` sets."""
    if lanes < 1:
        raise ValueError(f"data.lanes: got {lanes}; give at least 1")
    if batch_size % lanes:
        raise ValueError(
            f"data.lanes: {lanes} do not divide {field} {batch_size}; give a divisor of it"
        )
