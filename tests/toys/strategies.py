"""What hypothesis draws in several test modules."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

FAST = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow],
    database=None, derandomize=True,
    phases=(Phase.explicit, Phase.generate),
)  # fmt: skip
"""Few examples, the same in every run, and none is shrunk."""
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner),
    max_leaves=12,
)
"""Any JSON value."""
SHARD_COUNTS = st.lists(
    st.lists(st.integers(0, 6), min_size=1, max_size=6).map(lambda c: np.array(c, np.uint32)),
    min_size=1,
    max_size=7,
).filter(lambda shards: sum(int(s.sum()) for s in shards) > 0)
"""Annotations of each sample of each shard; there is at least one."""


def expected_pairs(counts: list[np.ndarray]) -> list[tuple[int, int]]:
    """All (sample, annotation) of such shards; samples are numbered across shards."""
    flat = np.concatenate(counts).tolist()
    return [(sample, n) for sample, count in enumerate(flat) for n in range(count)]
