"""The bridges from grid features to visual tokens: those of CLIP-ViL (GridEmbedding), of LLaVA
(Projector), and of VL-T5 and VL-Adapter (VisualEmbedding); and how tokens of images are put into
rows.

Shapes: u distinct images, b examples, n images per example, v' cells of the encoder's grid, v
tokens per image, l tokens of a row, d width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlds.models.loading.resizing import Resizes
from vlds.runtime.checks import Count, SourceFile
from vlds.schema import NO_IMAGE, UNDECAYED, OptimizerRule, OptimizerRules


def first_rows(table: Tensor, size: torch.Size) -> Tensor:
    """The first rows of a table for more cells along a side, as CLIP-ViL's code takes them."""
    return table[: size[0]]


class GridEmbedding(nn.Module):
    """The bridge to an encoder, as CLIP-ViL has it in VL-Adapter:

        e = LN(W (f + R[i] + C[j]) + b)

    for the cell in row i and column j, with f its features. (There, W and the norm are `visn_fc`
    and `visn_layer_norm` in lxrt/modeling.py, R and C the two tables of `LinearPositionEmbedding`.)
    """

    optimizer_rules: ClassVar[OptimizerRules] = {
        "rows.weight": UNDECAYED,
        "columns.weight": UNDECAYED,
    }

    resizes: ClassVar[Resizes] = dict.fromkeys(("rows.weight", "columns.weight"), first_rows)

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


class Projector(nn.Module):
    """The bridge to a causal model: the two-layer network of LLaVA 1.5 (Liu et al. 2023,
    https://arxiv.org/abs/2310.03744)."""

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
    # A missing image borrows image 0, and its mask hides what it shows.
    shown = tokens[image_index.clamp(min=0)].flatten(1, 2)
    return shown, visual_mask(image_index, tokens.shape[1])


def visual_mask(image_index: Tensor, num_tokens: int) -> Tensor:
    """(b, n) -> (b, n*v) bool, False for the tokens of absent images."""
    return (image_index != NO_IMAGE)[:, :, None].expand(-1, -1, num_tokens).flatten(1)


def packing(mask: Tensor, *, left: bool = False, order: Tensor | None = None) -> Tensor:
    """(b, l) mask -> (b, longest) places of each row's tokens in their order, and of the padding
    that is left behind them, or before them (`left`). `order`: (b, l) numbers from 1 on by which a
    row's tokens are sorted; equal ones keep their order."""
    # A stable sort of 0 and 1 keeps the tokens in their order: the mask 1 0 1 1 gives the places
    # 0 2 3, and with it in a longer batch 0 2 3 1.
    longest = int(mask.sum(1).max())
    order = mask.to(torch.uint8) if order is None else order * mask
    if left:
        return order.argsort(dim=1, stable=True)[:, mask.shape[1] - longest :]
    order = torch.where(mask, order, order.max() + 1)
    return order.argsort(dim=1, stable=True)[:, :longest]


@dataclass(frozen=True, kw_only=True)
class VisualEmbeddingConfig:
    """The bridge from grid features to visual tokens."""

    grid: Count | None = None
    """Cells along a side after max pooling (VL-Adapter pools 7 to 6); default: the encoder's own
    grid."""
    boxes: Literal["zeros", "grid"] = "zeros"
    """Boxes of tokens that come without: zeros as in VL-Adapter, or the cells' own, which tiny
    models need."""
    num_images: Count = 2
    """Most images an example may have."""
    norm: Literal["parts", "sum"] = "parts"
    """parts: a norm for the features and one for the boxes. sum: one norm over the sum with the
    embeddings of image and token, as in VL-BART's pre-training."""
    norm_biases: bool = False
    """Give the norms a bias where the backbone's norms have none (T5)."""
    weights: SourceFile | None = None
    """A .safetensors file with trained weights (visual_embedding.safetensors of `vlds convert
    hf`)."""


class VisualEmbedding(nn.Module):
    """The bridge to a joint encoder, as VL-T5 and VL-Adapter have it:

        e = Norm(W_f f + b_f) + Norm(W_p [x1, x2, y1, y2, area] + b_p) + ImageOrder[i] + E[|E|-1-o]

    for token o of image i, with E the backbone's token table: row |E| - 1 - o is <vis_extra_id_o>.
    With `norm: sum`, as VL-BART was pre-trained, the parts have no norms and their sum has one.
    Features may be pooled to a smaller grid first.
    """

    optimizer_rules: ClassVar[OptimizerRules] = {
        "image_order.weight": OptimizerRule(decays=False, vl_adapter_decays=True)
    }

    def __init__(
        self,
        config: VisualEmbeddingConfig,
        feature_dim: int,
        width: int,
        grid: int,
        norm: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        if config.grid is not None and config.grid > grid:
            raise ValueError(
                f"model.visual_embedding.grid: {config.grid} is more than the encoder's {grid} x "
                f"{grid} cells; give at most {grid}"
            )
        self.grid = config.grid or grid
        self.boxes = config.boxes
        of_parts = config.norm == "parts"
        self.feature_projection = nn.Linear(feature_dim, width)
        self.feature_norm = norm(width) if of_parts else nn.Identity()
        self.box_projection = nn.Linear(5, width)
        self.box_norm = norm(width) if of_parts else nn.Identity()
        self.sum_norm = nn.Identity() if of_parts else norm(width)
        self.image_order = nn.Embedding(config.num_images, width)

    @property
    def num_tokens(self) -> int:
        """Visual tokens per image."""
        return self.grid * self.grid

    def init_weights(self, std: float | None) -> None:
        """The family's init: N(0, std) and zero biases (BART), or PyTorch's defaults (T5), which
        modules have already."""
        if std is not None:
            for linear in (self.feature_projection, self.box_projection):
                nn.init.normal_(linear.weight, std=std)
                nn.init.zeros_(linear.bias)
            nn.init.normal_(self.image_order.weight, std=std)

    def forward(
        self, features: Tensor, boxes: Tensor | None, image_index: Tensor, token_table: nn.Module
    ) -> tuple[Tensor, Tensor]:
        """Features (u, v', dim), boxes (u, v', 4) or None, image_index (b, n) -> tokens (b, n*v,
        d), mask (b, n*v)."""
        num_examples, num_images = image_index.shape
        assert num_images <= self.image_order.num_embeddings, (
            f"{num_images} images an example; model.visual_embedding.num_images is "
            f"{self.image_order.num_embeddings}"
        )
        tokens = self.embed(features, boxes)  # (u, v, d)
        if not len(tokens):  # a limit has cut all pictures from the rows; the mask hides this one
            tokens = F.pad(tokens, (0, 0, 0, 0, 0, 1))
        tokens = tokens[image_index.clamp(min=0)]  # (b, n, v, d)
        tokens = tokens + self.image_order(torch.arange(num_images, device=tokens.device))[:, None]
        # <vis_extra_id_0>, <vis_extra_id_1>, ... are the table's rows from its end.
        assert isinstance(token_table, nn.Embedding)
        objects = torch.arange(self.num_tokens, device=tokens.device)
        tokens = tokens + token_table(token_table.num_embeddings - 1 - objects)
        tokens = self.sum_norm(tokens)
        mask = (image_index != NO_IMAGE)[:, :, None].expand(-1, -1, self.num_tokens)
        return tokens.flatten(1, 2), mask.reshape(num_examples, -1)

    def embed(self, features: Tensor, boxes: Tensor | None) -> Tensor:
        """What does not depend on an image's place: (u, v', dim) -> (u, v, d)."""
        dtype = self.feature_projection.weight.dtype
        features = pool(features.to(dtype), self.grid)
        places = self.cell_boxes(features.device) if boxes is None else boxes[:, : self.num_tokens]
        places = places.to(dtype)
        # (y2 - y1) * (x2 - x1).
        area = (places[..., 3] - places[..., 2]) * (places[..., 1] - places[..., 0])
        places = torch.cat([places, area[..., None]], dim=-1)
        seen: Tensor = self.feature_norm(self.feature_projection(features))
        placed: Tensor = self.box_norm(self.box_projection(places))
        return seen + placed

    def cell_boxes(self, device: torch.device) -> Tensor:
        """(1, v, 4) boxes (x1, x2, y1, y2) of tokens that come without."""
        if self.boxes == "zeros":
            return torch.zeros(1, self.num_tokens, 4, device=device)
        # Two cells a side: edges 0 .5 1, and the second cell of the first row is (.5, 1, 0, .5).
        edges = torch.arange(self.grid + 1, device=device) / self.grid
        x = torch.stack([edges[:-1], edges[1:]], dim=-1).expand(self.grid, self.grid, 2)
        return torch.cat([x, x.transpose(0, 1)], dim=-1).reshape(1, self.num_tokens, 4)


def pool(features: Tensor, grid: int) -> Tensor:
    """Adaptive max pooling of a square grid (u, s*s, dim) to (u, grid*grid, dim)."""
    num, cells, dim = features.shape
    side = round(cells**0.5)
    if side * side != cells:
        raise ValueError(
            f"features: {cells} vectors an image are not a square grid; store a square number of "
            "them"
        )
    if side == grid:
        return features
    # (u, s*s, dim) -> planes (u, dim, s, s) as pooling reads them, and back.
    planes = features.transpose(1, 2).reshape(num, dim, side, side)
    return F.adaptive_max_pool2d(planes, grid).flatten(2).transpose(1, 2)
