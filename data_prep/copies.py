"""Files of the same bytes under several names.

Nearly all pictures are told apart by their size and their last few kilobytes; only those that are
not are read whole.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Sequence
from hashlib import blake2b
from pathlib import Path

from vlds.runtime.regular_file import open_file

TAIL = 4096
"""Bytes: the ends of compressed pictures differ, and their beginnings are much alike."""


def find_copies(paths: Iterable[Path]) -> list[list[Path]]:
    """Each group of two or more files with the same bytes, in the order given."""
    there = [path for path in dict.fromkeys(paths) if path.is_file()]
    groups = _divided([there], lambda path: path.stat().st_size)
    return _divided(_divided(groups, _tail), _digest)


def _divided(groups: Iterable[Sequence[Path]], key: Callable[[Path], Hashable]) -> list[list[Path]]:
    """Groups by the key, without those of a single file."""
    divided: list[list[Path]] = []
    for group in groups:
        by_key: dict[Hashable, list[Path]] = {}
        for path in group:
            by_key.setdefault(key(path), []).append(path)
        divided += [alike for alike in by_key.values() if len(alike) > 1]
    return divided


def _tail(path: Path) -> bytes:
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - TAIL))
        return blake2b(file.read(), digest_size=16).digest()


def _digest(path: Path) -> bytes:
    digest = blake2b(digest_size=16)
    with open_file(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()
