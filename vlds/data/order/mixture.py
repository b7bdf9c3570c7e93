"""A recipe's mixture: the exact share of each source, the steps of an epoch, the mixed order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import ceil
from typing import Any

from vlds.data.order.epoch_order import NamedOrder
from vlds.data.order.mixed_order import MixedOrder, SourceOrder


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
        whole = num_batches(size, batch_size) * batch_size
        # repr: 0.7 means 7/10, not the binary fraction next to it.
        part = Fraction(repr(float(weight))) * Fraction(round(whole**exponent * 10**6), 10**6)
        parts.append(part / batch_size)
    return [part / sum(parts) for part in parts]


def num_batches(size: int, batch_size: int) -> int:
    """Batches that hold `size` examples once; the next epoch fills up the last one."""
    return -(-size // batch_size)


def steps_in(
    epochs: float, sizes: Sequence[int], global_batch_size: int, batch_sizes: Sequence[int] | None
) -> int:
    """Optimizer steps in which the sources together give `epochs` times the examples that they
    hold; for batches of one task, `epochs` times the batches that they fill."""
    exact = Fraction(repr(float(epochs)))
    if batch_sizes is None:
        return ceil(exact * sum(sizes) / global_batch_size)
    return ceil(exact * sum(map(num_batches, sizes, batch_sizes)))


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
