"""Parts of a micro-batch: rows of similar shape, each part padded to its own longest.

Tasks mixed within a micro-batch differ widely (two pictures or one, a word or a sentence to write),
and every row pays for the largest. The loss is a sum over rows, so cutting changes nothing but the
padding. Every micro-batch on every rank has the same number of parts, because all ranks must gather
weights in the same order under ZeRO-3.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]


def similar_rows(sizes: Tensor, parts: int) -> list[Tensor]:
    """Cut b >= `parts` rows into `parts` sets of row numbers with the fewest padded tokens in all.

    `sizes`: (b, k) tokens of each row, as `Model.sizes` counts them. Rows are sorted by their
    sizes, the first column first, and cut between unlike rows where there are enough of them.
    """
    table = sizes.cpu().numpy().astype(np.int64)
    order = np.lexsort(table.T[::-1])
    table = table[order]
    unlike = np.flatnonzero((table[1:] != table[:-1]).any(1)) + 1
    edges = np.arange(len(table) + 1)
    if len(unlike) + 1 >= parts:
        edges = np.concatenate([[0], unlike, [len(table)]])
    cuts = edges[cheapest_cuts(table, edges, parts)]
    return [torch.from_numpy(order[a:b]) for a, b in pairwise(cuts)]


def cheapest_cuts(sizes: Ints, edges: Ints, parts: int) -> list[int]:
    """Numbers of the edges between which the parts lie, first and last included.

    Dynamic programming over costs[i, j], the tokens of a part from edge i to edge j: its rows
    times its largest sizes (r, k).
    """
    segments = np.maximum.reduceat(sizes, edges[:-1])  # (g, k)
    starts = np.arange(len(segments))
    inside = np.where((starts[None] >= starts[:, None])[..., None], segments[None], 0)
    largest = np.maximum.accumulate(inside, axis=1).sum(-1)  # (g, g) from segment i through j
    rows = edges[None, 1:] - edges[:-1, None]
    costs = np.where(rows > 0, rows * largest, np.inf)
    best, choices = costs[0], []
    for _ in range(parts - 1):
        # A part that begins with segment i follows those that end with segment i - 1.
        totals = best[:-1, None] + costs[1:]
        choices.append(totals.argmin(0))
        best = totals.min(0)
    cuts = [len(segments)]
    for chosen in reversed(choices):
        cuts.append(int(chosen[cuts[-1] - 1]) + 1)
    return [0, *reversed(cuts)]
