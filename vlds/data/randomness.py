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


def generator_at(seed: int, position: int, attempt: int) -> np.random.Generator:
    """What an example at a position of the stream draws from; `attempt` counts substitutes."""
    words = (seed % (1 << 64)) << 64 | position
    return np.random.Generator(np.random.Philox(key=words, counter=attempt << 192))
