"""A path beside an encoder-decoder, through which alone gradients run.

The backbone reads the text without gradients, so that a step keeps none of its activations. The
path has narrow stacks of the backbone's own class, which read the text, the pictures and what the
backbone's layers give; its decoder's states, widened, give the logits in place of the backbone's.

Uses: a ladder (`lst.py`); a side network whose layers read nothing of the backbone; one that reads
the last layer alone.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vlds.methods.extended import ModelExtension
from vlds.runtime.made_for_batch import MadeForBatch


class SidePath(ModelExtension):
    """Narrow stacks beside a backbone."""

    def __init__(self, stacks: nn.Module) -> None:
        """`stacks`: what `TargetModules.narrow` has made, with the backbone's token table and
        positions, so that its input is as wide as the backbone's."""
        super().__init__()
        self.stacks: Any = stacks
        self.read = MadeForBatch()
        """States (b, l, d) and mask (b, l) that the backbone has read of the text."""

    def forward(self) -> None:
        """Nothing stands before the text."""

    def leave(self, states: Tensor) -> Tensor:
        """States of the path's decoder -> states as wide as the backbone's."""
        raise NotImplementedError


def side_path(model: nn.Module) -> SidePath | None:
    """The path beside a model, if a method has put one there."""
    extensions = getattr(model, "extensions", {}).values()
    return next((e for e in extensions if isinstance(e, SidePath)), None)
