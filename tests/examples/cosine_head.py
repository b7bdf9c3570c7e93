"""An example head: how alike a state is to a vector of each class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlds.models.heads import Head


@dataclass(frozen=True, kw_only=True)
class CosineHead(Head):
    """Cosines with the vectors of the classes, times `scale`."""

    scale: float = 20.0
    """Factor of the cosines."""

    def build(self, width: int) -> nn.Module:
        return Cosines(torch.randn(len(self.names), width), self.scale)


class Cosines(nn.Module):
    """(n, d) -> (n, c)."""

    def __init__(self, vectors: Tensor, scale: float) -> None:
        super().__init__()
        self.vectors, self.scale = nn.Parameter(vectors), scale

    def forward(self, states: Tensor) -> Tensor:
        return self.scale * F.normalize(states, dim=-1) @ F.normalize(self.vectors, dim=-1).T
