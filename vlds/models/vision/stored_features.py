"""Grid features that were computed beforehand and are stored in the shards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vlds.models.peers import Peer
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
        return Geometry(None, self.grid, self.dim, box_channels=BOX_CHANNELS * self.boxes)

    @property
    def source(self) -> str | None:
        return None

    def export(self, encoder: nn.Module, folder: Path) -> VisionEncoder:
        return self

    def peers(self, encoder: GridEncoder, pictures: Tensor) -> Iterator[Peer | str]:
        yield "vision encoder: features come from the shards"

    def build(self, dtype: torch.dtype) -> GridEncoder:
        return StoredModule(self.dim if self.boxes else None)


class StoredModule(GridEncoder):
    """Features in, the same features out, without their boxes if they have some."""

    def __init__(self, boxes_from: int | None) -> None:
        """`boxes_from`: channel at which boxes begin; None: there are none."""
        # Features are taken as they are: `forward` does not normalise.
        super().__init__([0.0], [1.0])
        self.boxes_from = boxes_from

    def forward(self, images: Tensor) -> Tensor:
        """(u, v, dim) or (u, v, dim + 4) -> (u, v, dim)."""
        return images if self.boxes_from is None else self.parts(images, self.boxes_from)[0]

    def boxes(self, images: Tensor) -> Tensor | None:
        return None if self.boxes_from is None else self.parts(images, self.boxes_from)[1]

    def parts(self, images: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """Features and boxes.

        Errors: ValueError for features without boxes, or of another size.
        """
        if images.shape[-1] != dim + BOX_CHANNELS:
            raise ValueError(
                f"model.vision.boxes: stored features have {images.shape[-1]} channels, {dim} + "
                f"{BOX_CHANNELS} expected; pack them with --boxes, or set vision.dim and "
                "vision.boxes as the data set was packed (dataset.json, features)"
            )
        return images[..., :dim], images[..., dim:]
