"""Files of the same bytes under several names.

Nearly all pictures are told apart by their size and their last few kilobytes; only those that are
not are read whole.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Sequence
from hashlib import blake2b
from multiprocessing.pool import ThreadPool
from pathlib import Path

from vlds.runtime.regular_file import open_file

TAIL = 4096
"""Bytes: the ends of compressed pictures differ, and their beginnings are much alike."""
READERS = 16
"""Threads: a disk on the network answers many questions at once."""


def find_copies(paths: Iterable[Path]) -> list[list[Path]]:
    """Each group of two or more files with the same bytes, in the order given."""
    groups = _divided([list(dict.fromkeys(paths))], _size)
    return _divided(_divided(groups, _tail), _digest)


def _divided(groups: Sequence[Sequence[Path]], key: Callable[[Path], Hashable]) -> list[list[Path]]:
    """Groups by the key, without those of a single file; None is no key."""
    numbered = [(number, path) for number, group in enumerate(groups) for path in group]
    with ThreadPool(READERS) as pool:
        keys = pool.map(key, [path for _, path in numbered])
    divided: dict[Hashable, list[Path]] = {}
    for (number, path), found in zip(numbered, keys, strict=True):
        if found is not None:
            divided.setdefault((number, found), []).append(path)
    return [alike for alike in divided.values() if len(alike) > 1]


def _size(path: Path) -> int | None:
    """None for a file that is not there, as missing pictures are."""
    try:
        return path.stat().st_size
    except (OSError, ValueError):  # a name that is too long, or holds a zero
        return None


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
