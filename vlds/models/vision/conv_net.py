"""A small convolutional net for small pictures: stages of 3x3 convolution, batch norm, ReLU.

Made for 64-pixel pictures of shapes, where strided convolutions do not tell shapes apart: with
`downsample: pool` the convolutions keep the resolution and max pooling halves it. Train it, then
freeze it together with its statistics. Under data parallel training each rank's batch norm sees its
own part of the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from vlds.models.vision.base import Geometry, GridEncoder, VisionEncoder, load_weights
from vlds.runtime.checks import Count, Pixels, SourceFile
from vlds.schema import ImageSpec


@dataclass(frozen=True, kw_only=True)
class ConvNet(VisionEncoder):
    """Small convolutional net, trained from scratch."""

    image_size: Pixels = 64
    """Pixels along a side of the square picture."""
    grid: Count = 4
    """Cells along a side; image_size / grid is a power of two."""
    widths: list[Count] = field(default_factory=lambda: [32, 64, 128, 128])
    """Channels of each stage. The first stages halve the resolution until the grid is reached."""
    downsample: Literal["stride", "pool"] = "stride"
    """How a stage halves: a convolution with stride 2, or one with stride 1 and max pooling after
    it."""
    coordinates: bool = False
    """Two more input channels: the pixel's x and y."""
    add_mean: bool = False
    """Add the mean over the grid, through a linear layer, to every cell: each sees the whole
    picture."""
    weights: SourceFile | None = None
    """A .safetensors file with trained weights (vision.safetensors of `vlds convert hf`)."""

    def __post_init__(self) -> None:
        # A whole number exactly if the quotient is a power of two: log2 is exact there.
        halvings = math.log2(self.image_size / self.grid)
        if halvings < 0 or halvings != int(halvings):
            raise ValueError(
                f"grid: {self.grid} does not come from image_size {self.image_size} by halving; "
                "give image_size / grid = 1, 2, 4, 8, ..."
            )
        if len(self.widths) < max(1, halvings):
            raise ValueError(
                f"widths: {self.widths} are {len(self.widths)} stages, but {self.image_size} "
                f"pixels to {self.grid} cells takes {int(halvings)}; give that many or more"
            )

    @property
    def geometry(self) -> Geometry:
        image = ImageSpec(self.image_size, self.image_size, "bilinear")
        return Geometry(image, self.grid, self.widths[-1])

    @property
    def source(self) -> str | None:
        return self.weights

    def build(self, dtype: torch.dtype) -> GridEncoder:
        net = ConvNetModule(self)
        load_weights(net, self.weights)
        return net.to(dtype)


class ConvNetModule(GridEncoder):
    """Stages of convolutions."""

    def __init__(self, config: ConvNet) -> None:
        # Pixels from -1 to 1.
        super().__init__([0.5] * 3, [0.5] * 3)
        self.coordinates = config.coordinates
        # The first stages halve; later ones only widen.
        halvings = int(math.log2(config.image_size / config.grid))
        channels = 5 if config.coordinates else 3
        stages: list[nn.Module] = []
        for number, width in enumerate(config.widths):
            halve = number < halvings
            stride = 2 if halve and config.downsample == "stride" else 1
            stages += [
                # Batch norm would take a bias out again.
                nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            if halve and config.downsample == "pool":
                stages.append(nn.MaxPool2d(2))
            channels = width
        self.stages = nn.Sequential(*stages)
        self.mean_projection = nn.Linear(channels, channels) if config.add_mean else None

    def features(self, pixels: Tensor) -> Tensor:
        if self.coordinates:
            # Two planes (u, 2, h, w): x and y of every pixel, from -1 to 1.
            num, _, height, width = pixels.shape
            x, y = (
                torch.linspace(-1, 1, size, dtype=pixels.dtype, device=pixels.device)
                for size in (width, height)
            )
            planes = torch.stack([x.expand(height, width), y[:, None].expand(height, width)])
            pixels = torch.cat([pixels, planes.expand(num, -1, -1, -1)], dim=1)
        # (u, dim, grid, grid) -> (u, grid * grid, dim), row by row.
        cells: Tensor = self.stages(pixels).flatten(2).transpose(1, 2)
        if self.mean_projection is not None:
            cells = cells + self.mean_projection(cells.mean(1, keepdim=True))
        return cells
