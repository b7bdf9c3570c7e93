"""The order of examples: a pure function of (seed, position).

Nothing here has a state that matters: tables are computed from the seed when a position asks for
them and kept only for speed. So any number of ranks and workers sees the same global batches, and
resuming is a seek.

    epoch_order.py   a source's annotations, permuted again in every epoch
    mixed_order.py   sources in exact proportions: the order of training
    mixture.py       a recipe's mixture as a mixed order
    eval_order.py    every example once: the order of evaluation
    here             random numbers by key, and what differs between two orders

Random numbers are raw Philox words, which mean the same in every version of numpy.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from hashlib import blake2b, sha256
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Value = TypeVar("Value")
KEPT_TABLES = 3
WHOLE_SAMPLE = -1
"""Annotation index that means all annotations of a sample."""


class Recent(Generic[Value]):
    """The last few results of a function."""

    def __init__(self, make: Callable[..., Value], limit: int) -> None:
        self._make = make
        self._limit = limit
        self._kept: OrderedDict[Hashable, Value] = OrderedDict()

    def __call__(self, *key: int) -> Value:
        if key not in self._kept:
            self._kept[key] = self._make(*key)
            if len(self._kept) > self._limit:
                self._kept.popitem(last=False)
        return self._kept[key]


class Draws:
    """NumPy's generator, set to an example's key before each use.

    It draws the same as `Generator(Philox(key=seed << 64 | position, counter=attempt << 192))`, but
    is created once: creating a generator takes ten times as long as setting its state.
    """

    def __init__(self, seed: int) -> None:
        self._bits = np.random.Philox(0)
        self._generator = np.random.Generator(self._bits)
        self._key = np.array([0, seed % (1 << 64)], np.uint64)
        self._counter = np.zeros(4, np.uint64)
        self._state = self._bits.state | {"state": {"key": self._key, "counter": self._counter}}

    def at(self, position: int, attempt: int) -> np.random.Generator:
        """The generator of an example, valid until the next call."""
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


def hashed(value: Any) -> str:
    """Short hash of what is too long for a fingerprint."""
    return sha256(repr(value).encode()).hexdigest()[:16]


def differences(saved: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> list[str]:
    """The differences between two fingerprints, a line each."""
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
