"""Source parity: without methods, the model computes what the library of its weights does.

Each kind of model says how its libraries compute the same (`ModelKind.peers`): from the pictures,
texts and files themselves, by their own processors and forward passes. So a wrong normalisation, a
shifted label, a wrong mask, a head that is not tied or half a checkpoint show here.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlds.models.kinds.base import ModelKind
from vlds.models.model import Model
from vlds.prove.bench import Bench
from vlds.prove.finding import TOLERANCE_OF_LOSSES, Comparison, Finding, compare_numbers
from vlds.schema import Images, Row


def source_parity(bench: Bench) -> Finding:
    """Compare the model with its libraries."""
    kind = bench.recipe.model
    if kind.packed_bits is not None:
        return Finding(
            left_out=f"model.bits: {kind.packed_bits} bits round the weights; leave them out to "
            "compare"
        )
    with bench.without_methods() as model:
        return beside_libraries(kind, model, bench.rows, bench.images)


def beside_libraries(kind: ModelKind, model: Model, rows: Sequence[Row], images: Images) -> Finding:
    """Compare a model without methods with its kind's libraries, on rows whose images are indices
    of `images`."""
    compared: list[Comparison] = []
    notes: list[str] = []
    for peer in kind.peers(model, rows, images):
        if isinstance(peer, str):
            notes.append(peer)
            continue
        exact = not any(numbers.is_floating_point() for numbers in peer.ours.values())
        tolerance = 0.0 if exact else TOLERANCE_OF_LOSSES
        compared.append(compare_numbers(peer.what, peer.ours, peer.theirs, tolerance))
    if not compared:
        return Finding(left_out="; ".join(notes) or "no library has a model of this kind")
    return Finding(compared=tuple(compared), notes=tuple(notes))
