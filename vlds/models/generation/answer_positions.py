"""A language model's head that computes the logits of some positions only.

Logits over the vocabulary are the largest tensor of a step, and most positions have no label. The
head keeps its class, and Hugging Face's forward pass runs unchanged around it: what some classes do
to logits behind the head (a softcap, a scale) stays right. States that a task's own head reads do
not enter it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vlds.methods.extended import InputExtension, extended

NAME = "answer_positions"
Picked = Tensor | tuple[Tensor, Tensor]
"""A mask (b, l), whose positions are read row by row; or rows (k,) and columns (k,)."""


@dataclass
class Picking:
    """What a forward pass reads of the states before the head."""

    picked: Picked
    is_token: Tensor | None
    """(k,) bool, True for positions whose logits are wanted; None: of all."""
    apart: Tensor | None = None
    """(m, d) states at the other positions, once the pass has run."""

    @property
    def states(self) -> Tensor:
        """The states at the positions whose logits are not wanted."""
        assert self.apart is not None, "the forward pass runs inside `picking`"
        return self.apart


class AnswerPositions(InputExtension):
    """Picks states (n, d) out of (b, l, d) before the head; all of them outside `picking`.

    `generate` asks for the last position of each row, a slice. On a CPU, torch multiplies a slice
    row by row, and in bf16 takes 500 times as long for it as for a copy (torch 2.13).
    """

    def __init__(self) -> None:
        super().__init__()
        self.picking: Picking | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        if (picking := self.picking) is None:
            return inputs.contiguous()
        states = inputs[picking.picked]
        if picking.is_token is None:
            picking.apart = states[:0]
            return states
        picking.apart = states[~picking.is_token]
        return states[picking.is_token]


def pick_positions(model: Any) -> AnswerPositions:
    """Put `AnswerPositions` before the head of a Hugging Face model."""
    positions = AnswerPositions()
    extended(model.get_output_embeddings()).input_extensions[NAME] = positions
    return positions


def output_width(model: Any) -> int:
    """Width of the states that a Hugging Face model's head reads."""
    return int(model.get_output_embeddings().in_features)


@contextmanager
def picking(
    positions: AnswerPositions, picked: Picked, is_token: Tensor | None
) -> Iterator[Picking]:
    """Inside, the head computes these positions only; of them, those that `is_token` says."""
    positions.picking = Picking(picked, is_token)
    try:
        yield positions.picking
    finally:
        positions.picking = None
