"""How ranks share a global batch, for any batch size and any number of ranks.

The slots of a global batch are cut into one consecutive share per rank; shares differ by at most
one row. A rank computes its share in micro-batches, and all ranks compute equally many, because
ZeRO's collectives run in every forward and backward pass. The loss has one coefficient per example
(vlds/models/loss.py), so the cut changes neither loss nor gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from vlds.data.order.permutation import Ints


@dataclass(frozen=True)
class BatchCut:
    """The number of ranks, and the largest micro-batch of a rank."""

    world_size: int = 1
    micro_batch_size: int | None = None
    """Most examples a rank holds at once; None: its whole share."""

    def check(self, batch_size: int, field: str = "data.global_batch_size") -> None:
        """Check that every rank gets an example.

        Errors: ValueError that names the field of the batch size.
        """
        if batch_size < self.world_size:
            plural = "s" * (batch_size > 1)
            raise ValueError(
                f"{field}: {batch_size} example{plural} for {self.world_size} ranks; give at least "
                f"one example per rank, or start {batch_size} rank{plural and 's or fewer'}"
            )

    def accumulation_steps(self, batch_size: int) -> int:
        """Micro-batches that every rank computes in an optimizer step."""
        largest_share = -(-batch_size // self.world_size)
        return -(-largest_share // (self.micro_batch_size or largest_share))

    def pieces(self, batch_size: int, global_rank: int) -> list[range]:
        """Slots of each of a rank's micro-batches.

        A piece is empty only if micro-batches hold one example and another rank has one more.
        """
        start, stop = self._edges(batch_size)[global_rank : global_rank + 2]
        steps = self.accumulation_steps(batch_size)
        edges = [start + step * (stop - start) // steps for step in range(steps + 1)]
        return [range(*edge) for edge in pairwise(edges)]

    def largest_piece(self, batch_size: int) -> int:
        """Examples of the largest micro-batch of any rank."""
        largest_share = -(-batch_size // self.world_size)
        return -(-largest_share // self.accumulation_steps(batch_size))

    def smallest_piece(self, batch_size: int) -> int:
        """Examples of the smallest micro-batch of any rank; a rank without a row computes one that
        does not count."""
        return max(1, batch_size // self.world_size // self.accumulation_steps(batch_size))

    def ranks_of(self, slots: Ints, batch_size: int) -> Ints:
        """The global rank that computes each slot."""
        return np.searchsorted(self._edges(batch_size)[1:], slots, side="right").astype(np.int64)

    def lanes_read(self, lanes: int, batch_size: int, ranks: range) -> int:
        """How many lanes of a global batch these global ranks read."""
        slots = np.arange(batch_size)
        ours = np.isin(self.ranks_of(slots, batch_size), ranks)
        return len(np.unique(slots[ours] * lanes // batch_size))

    def _edges(self, batch_size: int) -> list[int]:
        ranks = range(self.world_size + 1)
        return [rank * batch_size // self.world_size for rank in ranks]
