"""The order of examples: a pure function of (seed, position).

Nothing here has a state that matters: tables are computed from the seed when a position asks for
them and kept only for speed. So any number of ranks and workers sees the same global batches, and
resuming is a seek.

    randomness.py    random numbers by key
    epoch_order.py   a source's annotations, permuted anew in every epoch
    mixture.py       sources in exact proportions: the order of training
    here             the order of evaluation; what differs between two orders
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlds.data.randomness import Ints

WHOLE_SAMPLE = -1
"""Annotation number that stands for all annotations of a sample."""


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


def hashed(value: Any) -> str:
    """Stands for what would be too long for a fingerprint."""
    return sha256(repr(value).encode()).hexdigest()[:16]


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
