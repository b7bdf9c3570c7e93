"""Random numbers that are a function of a key: raw Philox words, whose meaning no version of numpy
changes; and a memory for tables that are made of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from hashlib import blake2b
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Value = TypeVar("Value")
KEPT_TABLES = 3


class Recent(Generic[Value]):
    """The last few results of a function."""

    def __init__(self, make: Callable[..., Value], kept: int = KEPT_TABLES) -> None:
        self._make = make
        self._most = kept
        self._kept: OrderedDict[Hashable, Value] = OrderedDict()

    def __call__(self, *key: int) -> Value:
        if key not in self._kept:
            self._kept[key] = self._make(*key)
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return self._kept[key]


class Draws:
    """NumPy's generator, set to the place of an example before each use.

    It gives what `Generator(Philox(key=seed << 64 | position, counter=attempt << 192))` does, but
    is made once: making one costs ten times as much as setting it.
    """

    def __init__(self, seed: int) -> None:
        self._bits = np.random.Philox(0)
        self._generator = np.random.Generator(self._bits)
        self._key = np.array([0, seed % (1 << 64)], np.uint64)
        self._counter = np.zeros(4, np.uint64)
        self._state = self._bits.state | {"state": {"key": self._key, "counter": self._counter}}

    def at(self, position: int, attempt: int) -> np.random.Generator:
        """The generator of an example; it is another example's at the next call."""
        self._key[0], self._counter[3] = position, attempt
        self._bits.state = self._state
        return self._generator


def random_words(count: int, *key: str | int) -> NDArray[np.uint64]:
    """Random words that depend on the key alone."""
    digest = blake2b("/".join(map(str, key)).encode(), digest_size=16).digest()
    words: NDArray[np.uint64] = np.random.Philox(key=int.from_bytes(digest, "little")).random_raw(
        count
    )
    return words


def permutation(count: int, *key: str | int) -> Ints:
    """A permutation that depends on the key alone."""
    return np.argsort(random_words(count, *key), kind="stable")
