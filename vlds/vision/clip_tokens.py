"""CLIP's vision transformer as METER reads it (https://arxiv.org/abs/2111.02387): all tokens, the
class token first, after the last norm and without the last block; pictures may be larger than those
it was trained on, for which its position embeddings are resized."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlds.runtime.checks import Count
from vlds.schema import ImageSpec
from vlds.vision.base import Geometry, GridEncoder, VisionEncoder
from vlds.vision.clip import ClipModule, ClipVision


@dataclass(frozen=True, kw_only=True)
class ClipTokens(ClipVision):
    """CLIP's vision transformer with its class token."""

    image_size: Count | None = None
    """Side of the pictures in pixels; default: that of the config. Position embeddings are resized
    to it."""
    blocks: Count | None = None
    """Transformer blocks that run; default: all but the last, as in METER."""

    @property
    def geometry(self) -> Geometry:
        """Errors: ValueError if patches do not cover the pictures."""
        config = self.read_config()
        size = self.image_size or config.image_size
        if size % config.patch_size:
            raise ValueError(
                f"model.vision.image_size: got {size}; give a multiple of the patches' side, "
                f"{config.patch_size}"
            )
        grid = size // config.patch_size
        return Geometry(ImageSpec(size, size), grid, config.hidden_size, class_token=True)

    def num_blocks(self, config: Any) -> int:
        """Errors: ValueError if the encoder has fewer."""
        most = int(config.num_hidden_layers)
        if (self.blocks or 1) > most:
            raise ValueError(f"model.vision.blocks: got {self.blocks}, and the encoder has {most}")
        return self.blocks or max(1, most - 1)

    def build(self, dtype: torch.dtype) -> GridEncoder:
        net = self.build_net(dtype)
        del net.encoder.layers[self.num_blocks(net.config) :]
        resize_positions(net.embeddings, self.geometry.grid_size)
        return ClipTokensModule(net)

    def export(self, encoder: nn.Module, folder: Path) -> VisionEncoder:
        """In Hugging Face's own layout, with the blocks and positions that run."""
        assert isinstance(encoder, ClipTokensModule)
        net, blocks = encoder.net, len(encoder.net.encoder.layers)
        net.config.num_hidden_layers = blocks
        net.config.image_size = self.geometry.grid_size * net.config.patch_size
        net.save_pretrained(folder / "vision")
        return replace(self, path=str(folder / "vision"), config=None, blocks=blocks)


class ClipTokensModule(ClipModule):
    """The transformer's tokens."""

    def features(self, pixels: Tensor) -> Tensor:
        """(u, 3, h, w) normalised -> (u, 1 + grid * grid, dim)."""
        states: Tensor = self.net(pixel_values=pixels).last_hidden_state
        normed: Tensor = self.net.post_layernorm(states)
        return normed


def resize_positions(embeddings: Any, grid: int) -> None:
    """Give CLIP's embeddings of patches positions for another grid."""
    table = embeddings.position_embedding.weight
    positions = resized_positions(table.data, grid)
    if len(positions) != len(table):
        embeddings.position_embedding = nn.Embedding.from_pretrained(positions)
        ids = torch.arange(len(positions), device=embeddings.position_ids.device)
        embeddings.position_ids = ids[None]
        embeddings.num_positions, embeddings.num_patches = len(positions), len(positions) - 1
        embeddings.image_size = grid * embeddings.patch_size


def resized_positions(table: Tensor, grid: int) -> Tensor:
    """(1 + g * g, d) -> (1 + grid * grid, d): the class token's row as it is, the others resized as
    a picture, bicubically."""
    old = round((len(table) - 1) ** 0.5)
    if old == grid:
        return table
    cells = table[1:].T.reshape(1, -1, old, old)
    cells = F.interpolate(cells, (grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([table[:1], cells.flatten(2)[0].T])
