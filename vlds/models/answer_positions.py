"""A language model's head that computes the logits of some positions only.

Logits over the vocabulary are the largest tensor of a step, and most positions have no label. The
head keeps its class, and Hugging Face's forward pass runs unchanged around it: what some classes do
to logits behind the head (a softcap, a scale) stays right.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from vlds.methods.extended import InputExtension, extended

NAME = "answer_positions"
Picked = Tensor | tuple[Tensor, Tensor]
"""A mask (b, l), whose positions are read row by row; or rows (k,) and columns (k,)."""


class AnswerPositions(InputExtension):
    """Picks states (n, d) out of (b, l, d) before the head; all of them outside `picking`."""

    def __init__(self) -> None:
        super().__init__()
        self.picked: Picked | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs if self.picked is None else inputs[self.picked]


def pick_positions(model: Any) -> AnswerPositions:
    """Put `AnswerPositions` before the head of a Hugging Face model."""
    positions = AnswerPositions()
    extended(model.get_output_embeddings()).input_extensions[NAME] = positions
    return positions


@contextmanager
def picking(positions: AnswerPositions, picked: Picked) -> Iterator[None]:
    """Inside, the head computes these positions only."""
    positions.picked = picked
    try:
        yield
    finally:
        positions.picked = None
