"""One linear layer: with a frozen model and no methods, a linear probe."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from vlds.heads.base import Head


@dataclass(frozen=True, kw_only=True)
class LinearHead(Head):
    """W x + b, drawn from N(0, 0.02^2)."""

    def build(self, width: int) -> nn.Module:
        return drawn(nn.Linear(width, len(self.names)))


def drawn(layer: nn.Linear) -> nn.Linear:
    """The layer with weights from N(0, 0.02^2) and biases of 0, as BERT's family begins."""
    nn.init.normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer
