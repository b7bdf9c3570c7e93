"""Values of all ranks on the first one, along a tree."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.toys.rank_pool import RankPool
from vlds.runtime.ranks import rank_from_environment


def gathered() -> Any:
    """Values of different sizes, one of them none."""
    ranks = rank_from_environment()
    value = {"rank": ranks.global_rank, "x": "y" * 1000 * ranks.global_rank}
    return ranks.gather(value), ranks.gather(None), os.environ["RANK"]


@pytest.mark.parametrize("size", [2, 4])
def test_values_come_in_the_order_of_ranks(ranks2: RankPool, ranks4: RankPool, size: int) -> None:
    first, *others = (ranks2 if size == 2 else ranks4).run(gathered)
    assert [value["rank"] for value in first[0]] == list(range(size))
    assert [len(value["x"]) for value in first[0]] == [1000 * n for n in range(size)]
    assert first[1] == [None] * size
    assert all(other[:2] == (None, None) for other in others)
