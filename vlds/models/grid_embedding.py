"""The bridge from grid features to an encoder's tokens, as CLIP-ViL has it in VL-Adapter.

    e = LN(W (f + R[i] + C[j]) + b)

for the cell in row i and column j, with f its features. (There, W and the norm are `visn_fc` and
`visn_layer_norm` in lxrt/modeling.py, R and C the two tables of `LinearPositionEmbedding`.)
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from vlds.schema import UNDECAYED, OptimizerRules


class GridEmbedding(nn.Module):
    """Features of pictures -> visual tokens."""

    optimizer_rules: ClassVar[OptimizerRules] = {
        "rows.weight": UNDECAYED,
        "columns.weight": UNDECAYED,
    }

    def __init__(self, grid: int, feature_dim: int, width: int, *, dropout: float, std: float):
        """`grid`: cells along a side; `std`: of the initial weights."""
        super().__init__()
        self.rows, self.columns = nn.Embedding(grid, feature_dim), nn.Embedding(grid, feature_dim)
        self.projection = nn.Linear(feature_dim, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(dropout)
        for module in (self.rows, self.columns, self.projection):
            nn.init.normal_(module.weight, std=std)
        nn.init.zeros_(self.projection.bias)

    @property
    def num_tokens(self) -> int:
        """Visual tokens of a picture."""
        return self.rows.num_embeddings**2

    def forward(self, features: Tensor) -> Tensor:
        """(b, v, dim), row by row -> (b, v, d)."""
        places = self.rows.weight[:, None] + self.columns.weight  # (grid, grid, dim)
        placed = features.to(places.dtype) + places.flatten(0, 1)
        tokens: Tensor = self.dropout(self.norm(self.projection(placed)))
        return tokens
