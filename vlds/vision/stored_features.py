"""Grid features that lie in the shards, computed beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vlds.schema import ImageSpec
from vlds.vision.base import GridEncoder, VisionEncoder


@dataclass(frozen=True, kw_only=True)
class StoredFeatures(VisionEncoder):
    """No encoder at all: features come from the shards."""

    dim: int
    """Channels of a feature vector (2048 for CLIP's RN101)."""
    grid: int
    """Cells along a side (7 for CLIP's RN101 at 224 pixels)."""

    @property
    def image(self) -> ImageSpec | None:
        """No pictures are read."""
        return None

    @property
    def grid_size(self) -> int:
        """As stored."""
        return self.grid

    @property
    def feature_dim(self) -> int:
        """As stored."""
        return self.dim

    @property
    def source(self) -> str | None:
        """Nothing is loaded."""
        return None

    def export(self, encoder: nn.Module, folder: Path) -> VisionEncoder:
        """There is nothing to write."""
        return self

    def build(self, dtype: torch.dtype) -> GridEncoder:
        """A module that hands the features on."""
        return Identity([0.0], [1.0])


class Identity(GridEncoder):
    """Features in, the same features out."""

    def forward(self, images: Tensor) -> Tensor:
        """(u, v, dim) -> the same."""
        return images
