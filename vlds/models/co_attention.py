"""METER's co-attention (Dou et al. 2022, https://arxiv.org/abs/2111.02387): text and picture as two
streams, each of whose layers attends to itself and then to the other stream.

    x, y -> T(x; y), I(y; x),    T(x; y) = FFN(LN(z + Attention(z, y))), z = LN(x + Attention(x, x))

Both layers of a pair read the streams as they were before the pair. What stands for the pair of
text and picture is the first token of each stream, through a pooler of its own.

The layers are those of Hugging Face's BridgeTower, which is built on METER. Their names in METER's
code are cross_modal_text_layers, cross_modal_image_layers and so on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers.models.bridgetower.configuration_bridgetower import BridgeTowerTextConfig
from transformers.models.bridgetower.modeling_bridgetower import (
    BridgeTowerBertCrossLayer,
    BridgeTowerPooler,
)

from vlds.runtime.checks import Count, ShareBelow1
from vlds.schema import UNDECAYED, OptimizerRules, Role

ROLES: dict[Role, str] = {
    "attn_q": "attention.self.query",
    "attn_k": "attention.self.key",
    "attn_v": "attention.self.value",
    "attn_out": "attention.output.dense",
    "cross_attn_q": "crossattention.self.query",
    "cross_attn_k": "crossattention.self.key",
    "cross_attn_v": "crossattention.self.value",
    "cross_attn_out": "crossattention.output.dense",
    "ffn_in": "intermediate.dense",
    "ffn_out": "output.dense",
}
"""Role -> module of a layer."""
NORMS = ("attention.output.LayerNorm", "crossattention.output.LayerNorm", "output.LayerNorm")
INIT_STD = 0.02


@dataclass(frozen=True, kw_only=True)
class CoAttentionConfig:
    """Sizes of the two streams; the defaults are METER's."""

    width: Count = 768
    """Channels of both streams."""
    layers: Count = 6
    """Layers of each stream."""
    heads: Count = 12
    """Heads of each attention."""
    dropout: ShareBelow1 = 0.1
    """Dropout of layers and of attention weights."""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"heads: got {self.heads}, which does not divide width {self.width}")

    @property
    def layer_config(self) -> BridgeTowerTextConfig:
        """What Hugging Face's layers want."""
        config = BridgeTowerTextConfig(
            hidden_size=self.width,
            num_attention_heads=self.heads,
            intermediate_size=4 * self.width,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
            layer_norm_eps=1e-12,
        )
        config._attn_implementation = "sdpa"
        return config


class Fused(NamedTuple):
    """What co-attention gives."""

    text: Tensor
    """(b, l, d) states of the text's tokens."""
    image: Tensor
    """(b, v, d) states of the picture's tokens."""
    pooled: Tensor
    """(b, 2 d) the text's first token and the picture's, pooled."""


class CoAttention(nn.Module):
    """Two streams of layers."""

    optimizer_rules: ClassVar[OptimizerRules] = {"types.weight": UNDECAYED}

    def __init__(
        self, config: CoAttentionConfig, text_width: int, image_width: int, class_token: bool
    ) -> None:
        """`text_width`, `image_width`: channels of the encoders. `class_token`: whether the first
        token stands for the picture; else the mean of all does."""
        super().__init__()
        self.class_token = class_token
        layer, d = config.layer_config, config.width
        self.text_projection = nn.Linear(text_width, d)
        self.image_projection = nn.Linear(image_width, d)
        self.types = nn.Embedding(3, d)  # text, first picture, second picture
        self.text_layers, self.image_layers = (
            nn.ModuleList(BridgeTowerBertCrossLayer(layer) for _ in range(config.layers))
            for _ in range(2)
        )
        self.text_pooler, self.image_pooler = BridgeTowerPooler(layer), BridgeTowerPooler(layer)
        self.init_weights()

    def init_weights(self) -> None:
        """As BERT does."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=INIT_STD)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(
        self, text: Tensor, text_mask: Tensor, image: Tensor, image_mask: Tensor, number: int = 0
    ) -> Fused:
        """`text` (b, l, d_t), `image` (b, v, d_i), masks (b, l) and (b, v) bool, True for tokens;
        `number`: which of an example's pictures it is."""
        text = self.text_projection(text) + self.types.weight[0]
        image = self.image_projection(image) + self.types.weight[1 + number]
        over_text, over_image = (additive(mask, text.dtype) for mask in (text_mask, image_mask))
        for text_layer, image_layer in zip(self.text_layers, self.image_layers, strict=True):
            text, image = (
                text_layer(text, image, over_text, over_image)[0],
                image_layer(image, text, over_image, over_text)[0],
            )
        of_image = image if self.class_token else image.mean(1, keepdim=True)
        pooled = torch.cat([self.text_pooler(text), self.image_pooler(of_image)], -1)
        return Fused(text, image, pooled)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """(b, s) bool -> (b, 1, 1, s): what attention adds to its scores. Always a tensor, since the
    layers' self-attention would be causal without one."""
    scores = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return scores.masked_fill(~mask, torch.finfo(dtype).min)[:, None, None]
