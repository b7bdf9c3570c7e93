"""Grid features that were computed beforehand and are stored in the shards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vlds.models.vision.base import Geometry, GridEncoder, VisionEncoder
from vlds.runtime.checks import Count

BOX_CHANNELS = 4


@dataclass(frozen=True, kw_only=True)
class StoredFeatures(VisionEncoder):
    """No encoder at all: features come from the shards."""

    dim: Count
    """Channels of a feature vector (2048 for CLIP's RN101)."""
    grid: Count
    """Cells along a side (7 for CLIP's RN101 at 224 pixels)."""

    boxes: bool = False
    """Behind a vector's channels stands its box, as `data_prep` stores a detector's: x1, x2, y1, y2
    as shares of width and height. 36 boxes are a `grid` of 6."""

    @property
    def geometry(self) -> Geometry:
        """As stored; no pictures are read."""
        return Geometry(None, self.grid, self.dim, box_channels=BOX_CHANNELS * self.boxes)

    @property
    def source(self) -> str | None:
        return None

    def export(self, encoder: nn.Module, folder: Path) -> VisionEncoder:
        return self

    def build(self, dtype: torch.dtype) -> GridEncoder:
        return BoxedFeatures(self.dim) if self.boxes else Identity([0.0], [1.0])


class Identity(GridEncoder):
    """Features in, the same features out."""

    def forward(self, images: Tensor) -> Tensor:
        """(u, v, dim) -> the same."""
        return images


class BoxedFeatures(GridEncoder):
    """Features with boxes in, features out."""

    def __init__(self, dim: int) -> None:
        super().__init__([0.0], [1.0])
        self.dim = dim

    def forward(self, images: Tensor) -> Tensor:
        """(u, v, dim + 4) -> (u, v, dim)."""
        return self.checked(images)[..., : self.dim]

    def boxes(self, images: Tensor) -> Tensor:
        return self.checked(images)[..., self.dim :]

    def checked(self, images: Tensor) -> Tensor:
        """Errors: ValueError for features without boxes, or of another size."""
        if images.shape[-1] != self.dim + BOX_CHANNELS:
            raise ValueError(
                f"model.vision.boxes: stored features have {images.shape[-1]} channels, {self.dim} "
                f"+ {BOX_CHANNELS} expected; pack them with --boxes, or set vision.dim and "
                "vision.boxes as the data set was packed (dataset.json, features)"
            )
        return images
