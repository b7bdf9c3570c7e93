"""Beam search written down plainly: what the batched search must give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vlds.models.kinds.joint import JointModel
from vlds.schema import Decoding


def log_probs(model: JointModel, states: Any, ids: list[int]) -> list[float]:
    """Next token's log-probabilities after some ids, without a cache."""
    logits = model.vocabulary_logits(model.decode(*states, torch.tensor([ids])))[0, -1]
    return logits.log_softmax(-1).tolist()


def beam_search(
    scores: Callable[[list[int]], list[float]],
    start: int,
    end: int,
    decoding: Decoding,
    forces_end: bool = False,
) -> list[int]:
    """Beam search for one example, one hypothesis at a time, as in transformers 4.2."""
    limit, size = decoding.max_new_tokens + 1, decoding.num_beams
    open_beams: list[tuple[float, list[int]]] = [(0.0, [start])]
    finished: list[tuple[float, list[int]]] = []
    done = False
    while len(open_beams[0][1]) < limit and not done:
        length = len(open_beams[0][1])
        candidates = []
        for total, ids in open_beams:
            following = scores(ids)
            if forces_end and length == limit - 1:
                following = [0.0 if n == end else -1e30 for n in range(len(following))]
            candidates += [(total + score, ids, token) for token, score in enumerate(following)]
        candidates = sorted(candidates, key=lambda entry: -entry[0])[: 2 * size]
        open_beams = []
        for rank, (total, ids, token) in enumerate(candidates):
            if token == end:
                if rank < size:
                    finished.append((total / length, ids))
            elif len(open_beams) < size:
                open_beams.append((total, [*ids, token]))
        finished = sorted(finished, key=lambda entry: -entry[0])[:size]
        if len(finished) == size:
            done = decoding.early_stopping or finished[-1][0] >= candidates[0][0] / length
    if not done:
        shorter = 0 if decoding.length_counts_start else 1
        finished += [(total / (len(ids) - shorter), ids) for total, ids in open_beams]
    return max(finished, key=lambda entry: entry[0])[1][1:]
