"""Grid features that were computed beforehand and are stored in the shards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vlds.vision.base import Geometry, GridEncoder, VisionEncoder


@dataclass(frozen=True, kw_only=True)
class StoredFeatures(VisionEncoder):
    """No encoder at all: features come from the shards."""

    dim: int
    """Channels of a feature vector (2048 for CLIP's RN101)."""
    grid: int
    """Cells along a side (7 for CLIP's RN101 at 224 pixels)."""

    @property
    def geometry(self) -> Geometry:
        """As stored; no pictures are read."""
        return Geometry(None, self.grid, self.dim)

    @property
    def source(self) -> str | None:
        return None

    def export(self, encoder: nn.Module, folder: Path) -> VisionEncoder:
        return self

    def build(self, dtype: torch.dtype) -> GridEncoder:
        return Identity([0.0], [1.0])


class Identity(GridEncoder):
    """Features in, the same features out."""

    def forward(self, images: Tensor) -> Tensor:
        """(u, v, dim) -> the same."""
        return images
