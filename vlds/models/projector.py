"""The bridge from grid features to a causal model's tokens: the two-layer network of LLaVA 1.5
(Liu et al. 2023, https://arxiv.org/abs/2310.03744), and how rows of visual tokens and text are put
together.

Shapes: u distinct images, b rows, n images per row, v tokens per image, l tokens, d width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlds.models.visual_embedding import pool
from vlds.schema import NO_IMAGE


class Projector(nn.Module):
    """Features of images -> visual tokens."""

    def __init__(self, feature_dim: int, width: int, grid: int) -> None:
        """`grid`: cells along a side after max pooling."""
        super().__init__()
        self.grid = grid
        self.linear_1 = nn.Linear(feature_dim, width)
        self.linear_2 = nn.Linear(width, width)

    @property
    def num_tokens(self) -> int:
        """Visual tokens per image."""
        return self.grid * self.grid

    def forward(self, features: Tensor) -> Tensor:
        """(u, v', dim) -> (u, v, d)."""
        cells = pool(features.to(self.linear_1.weight.dtype), self.grid)
        tokens: Tensor = self.linear_2(F.gelu(self.linear_1(cells)))
        return tokens


def tokens_of_rows(tokens: Tensor, image_index: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (u, v, d) of distinct images, and image_index (b, n) -> tokens (b, n*v, d) and their
    mask (b, n*v), False for absent images."""
    mask = (image_index != NO_IMAGE)[:, :, None].expand(-1, -1, tokens.shape[1])
    return tokens[image_index.clamp(min=0)].flatten(1, 2), mask.flatten(1)


def packing(mask: Tensor, *, left: bool = False) -> Tensor:
    """(b, l) mask -> (b, longest) places of each row's tokens in their order, and of the padding
    that is left behind them, or before them (`left`)."""
    longest = int(mask.sum(1).max())
    if left:
        return mask.to(torch.uint8).argsort(dim=1, stable=True)[:, mask.shape[1] - longest :]
    return (~mask).to(torch.uint8).argsort(dim=1, stable=True)[:, :longest]
