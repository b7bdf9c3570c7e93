"""The share of each source in a mixture, and the steps of an epoch, as exact fractions."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import ceil


def mixing_shares(
    weights: Sequence[float],
    sizes: Sequence[int],
    temperature: float | None,
    batch_sizes: Sequence[int] | None = None,
) -> list[Fraction]:
    """Exact shares of the sources: weight x size^(1/temperature), or the weights alone for None.

    Temperature 1 is proportional to size; higher temperatures are more equal. The shares are of
    examples; with `batch_sizes` (batches of one task) they are of batches, and a size counts in
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
    """Batches in which `size` examples come once, the last one filled up from the next epoch."""
    return -(-size // batch_size)


def steps_in(
    epochs: float, sizes: Sequence[int], global_batch_size: int, batch_sizes: Sequence[int] | None
) -> int:
    """Optimizer steps in which the sources together give `epochs` times as many examples as they
    hold; in batches of one task, `epochs` times as many batches as they fill."""
    exact = Fraction(repr(float(epochs)))
    if batch_sizes is None:
        return ceil(exact * sum(sizes) / global_batch_size)
    return ceil(exact * sum(map(num_batches, sizes, batch_sizes)))
