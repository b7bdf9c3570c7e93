"""Source parity: without methods, the model computes what the library of its weights does.

Each kind of model says how its libraries compute the same (`ModelKind.peers`): from the pictures,
texts and files themselves, by their own processors and forward passes. So a wrong normalisation, a
shifted label, a wrong mask, a head that is not tied or half a checkpoint show here.
"""

from __future__ import annotations

import torch

from vlds.prove.bench import Bench
from vlds.prove.finding import OF_LOGITS, ROUNDING, Comparison, Finding, compare_numbers

TOLERANCE = OF_LOGITS * ROUNDING[torch.float32]


def source_parity(bench: Bench) -> Finding:
    """Compare the model with its libraries."""
    kind = bench.recipe.model
    if kind.packed_bits is not None:
        return Finding(
            left_out=f"model.bits: {kind.packed_bits} bits round the weights; leave them out to "
            "compare"
        )
    compared: list[Comparison] = []
    notes: list[str] = []
    with bench.without_methods() as model:
        for peer in kind.peers(model, bench.rows, bench.images):
            if isinstance(peer, str):
                notes.append(peer)
                continue
            exact = not any(numbers.is_floating_point() for numbers in peer.ours.values())
            tolerance = 0.0 if exact else TOLERANCE
            compared.append(compare_numbers(peer.what, peer.ours, peer.theirs, tolerance))
    if not compared:
        return Finding(left_out="; ".join(notes) or "no library has a model of this kind")
    return Finding(compared=tuple(compared), notes=tuple(notes))
