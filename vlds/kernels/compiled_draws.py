"""Dropout's draws, compiled by numba where it is installed: the same ones, sooner."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Draw: TypeAlias = Callable[
    [NDArray[np.int64], NDArray[np.int64], Any, Any, NDArray[np.int16]], None
]


@cache
def compiled_draw(multiplier: int) -> Draw | None:
    """A function of keys (m,) and (f,), the largest draw that is dropped, and the value of kept
    elements, which it writes into (m, n), and 0 elsewhere; n is at most 4 f. None without numba.

    `multiplier`: of the hash.
    """
    try:
        import numba
    except ImportError:
        return None
    factor, half, zero = np.int64(multiplier), np.int64(32), np.int16(0)

    def draw(
        rows: NDArray[np.int64],
        features: NDArray[np.int64],
        last: Any,
        value: Any,
        written: NDArray[np.int16],
    ) -> None:
        hashes = np.empty_like(features)
        draws = hashes.view(np.int16)
        for row in range(len(rows)):
            # Two loops, each of which fits vector instructions.
            for lane in range(len(features)):
                mixed = rows[row] + features[lane]
                hashes[lane] = (mixed ^ (mixed >> half)) * factor
            for place in range(written.shape[1]):
                written[row, place] = value if draws[place] > last else zero

    try:
        compiled: Draw = numba.njit(nogil=True, cache=True)(draw)
    except RuntimeError:  # no folder for numba's cache can be written
        compiled = numba.njit(nogil=True)(draw)
    return compiled
