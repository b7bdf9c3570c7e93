"""How much boxes overlap."""

from __future__ import annotations

from collections.abc import Sequence


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes (left, top, width, height); 0 for boxes without area."""
    width, height = (
        min(one[axis] + one[2 + axis], other[axis] + other[2 + axis]) - max(one[axis], other[axis])
        for axis in (0, 1)
    )
    shared = max(0.0, width) * max(0.0, height)
    whole = one[2] * one[3] + other[2] * other[3] - shared
    return shared / whole if whole > 0 else 0.0
