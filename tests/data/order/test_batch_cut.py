"""Any global batch on any number of ranks: who computes which slots, in how many micro-batches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlds.data.order.mixed_order import BatchCut


@given(
    world_size=st.integers(1, 16),
    micro=st.none() | st.integers(1, 12),
    extra=st.integers(0, 500),
)
def test_shares_differ_by_at_most_a_row(world_size: int, micro: int | None, extra: int) -> None:
    size, cut = world_size + extra, BatchCut(world_size, micro)
    cut.check(size)
    ranks = [cut.pieces(size, rank) for rank in range(world_size)]
    slots = [[slot for piece in pieces for slot in piece] for pieces in ranks]
    assert [slot for share in slots for slot in share] == list(range(size))
    shares = [len(share) for share in slots]
    assert max(shares) - min(shares) <= 1
    owners = cut.ranks_of(np.arange(size), size).tolist()
    assert [owners.count(rank) for rank in range(world_size)] == shares
    assert owners == sorted(owners)
    assert {len(pieces) for pieces in ranks} == {cut.accumulation_steps(size)}
    lengths = [len(piece) for pieces in ranks for piece in pieces]
    assert max(lengths) == cut.largest_piece(size) <= (micro or size)
    assert max(1, min(lengths)) == cut.smallest_piece(size)
    assert min(lengths) > 0 or micro == 1
    # No micro-batch more than the limit needs.
    assert cut.accumulation_steps(size) == -(-max(shares) // (micro or max(shares)))


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (3, "a.batch_size: 3 examples for 4 ranks; give at least one .* start 3 ranks or fewer$"),
        (1, "a.batch_size: 1 example for 4 ranks; give at least one .* start 1 rank$"),
    ],
)
def test_fewer_examples_than_ranks(size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchCut(4).check(size, "a.batch_size")
