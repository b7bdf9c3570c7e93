"""Cuts work into pieces whose numbers stay in a processor's cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch

CHUNK = 1 << 18
"""Numbers that one thread computes at a time."""


def chunks(num_rows: int, width: int, most: int | None = None) -> Iterator[slice]:
    """Rows of so many numbers that are computed together: at most `most` numbers, by default what
    the caches of all threads hold."""
    most = CHUNK * torch.get_num_threads() if most is None else most
    size = max(1, most // max(1, width))
    for start in range(0, num_rows, size):
        yield slice(start, start + size)
