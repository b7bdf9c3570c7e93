"""The order of examples: a pure function of (seed, position).

Nothing here has a state that matters: tables are computed from the seed when a position asks for
them and kept only for speed. So any number of ranks and workers sees the same global batches, and
resuming is a seek.

    randomness.py    random numbers by key
    epoch_order.py   a source's annotations, permuted anew in every epoch
    mixture.py       sources in exact proportions: the order of training
    eval_order.py    every example once: the order of evaluation
    here             what differs between two orders
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

WHOLE_SAMPLE = -1
"""Annotation number that stands for all annotations of a sample."""


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
