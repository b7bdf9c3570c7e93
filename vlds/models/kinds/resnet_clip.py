"""CLIP with OpenAI's ResNet as its vision tower (RN50, RN101, RN50x4, RN50x16, RN50x64), as a model
of Hugging Face: the text tower is that of its CLIPModel, the vision tower is timm's.

Hugging Face has no class for it, so its config.json has a `model_type` of ours, and vlds alone
opens such a folder. `vlds convert clip` writes one from a folder in open_clip's form.

Shapes: u pictures, h x w pixels, d width of the embeddings.
"""

# No `from __future__ import annotations`: `strict` reads the types of the fields, not their names.
from typing import Any, Self

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import (
    AutoConfig,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedConfig,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPPreTrainedModel

from vlds.schema import TargetModules

STRIDE = 32
"""Pixels along a side of a cell of the last feature map."""
HEAD_WIDTH = 64
"""Width of a head of the attention pool."""
WIDTHS = 8
"""timm rounds widths to multiples of it."""
CURE = (
    "The vision tower is a ResNet, whose only linear layers are those of its attention pool "
    "(attn_q, attn_k, attn_v, attn_out); choose part: text, or a method that takes these, such as "
    "LoRA with roles: [attn_q, attn_v]"
)


@strict
class ResNetConfig(PreTrainedConfig):
    """Sizes of the vision tower."""

    model_type = "clip_resnet_vision"
    base_config_key = "vision_config"

    image_size: int = 224
    """Pixels along a side of a picture."""
    width: int = 64
    """Channels of the first stage's inner layers. The feature map has 32 times as many."""
    layers: list[int] | tuple[int, ...] = (3, 4, 6, 3)
    """Blocks of each stage."""

    def validate_architecture(self) -> None:
        """Errors: ValueError for sizes that no such tower has."""
        if self.width < WIDTHS or self.width % WIDTHS:
            raise ValueError(f"width is {self.width}, a multiple of {WIDTHS} expected")
        if self.image_size < STRIDE or self.image_size % STRIDE:
            raise ValueError(f"image_size is {self.image_size}, a multiple of {STRIDE} expected")
        if len(self.layers) != 4 or min(self.layers) < 1:
            raise ValueError(f"layers is {list(self.layers)}, four numbers from 1 expected")


@strict
class ResNetClipConfig(CLIPConfig):
    """CLIPConfig, but for the vision tower."""

    model_type = "clip_resnet"
    sub_configs_defaults = {"vision_config": ResNetConfig, "text_config": CLIPTextConfig}  # noqa: RUF012

    vision_config: dict[str, Any] | ResNetConfig | None = None


class ResNetTower(nn.Module):
    """OpenAI's modified ResNet (https://arxiv.org/abs/2103.00020, section 2.4): a stem of three
    convolutions, average pools in place of strides, and an attention pool that projects to the
    width of the embeddings."""

    targets = TargetModules(
        {
            role: (f"net.head.{layer}",)
            for role, layer in (
                ("attn_q", "q"),
                ("attn_k", "k"),
                ("attn_v", "v"),
                ("attn_out", "proj"),
            )
        },
        cures=dict.fromkeys(("ffn_in", "ffn_out", "attn_qkv", "norm"), CURE),
    )
    """Where methods attach. Batch norms play no role: their channels come before the pixels, and
    methods that extend norms expect them last."""

    def __init__(self, config: ResNetConfig, projection_dim: int) -> None:
        super().__init__()
        # Importing the library takes a second and 30 MB.
        from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg

        width = config.width
        blocks = tuple(
            # Blocks are four times as wide outside as inside, and a stage twice as the one before.
            ByoBlockCfg(type="bottle", d=num, c=4 * width << stage, s=2 if stage else 1, br=0.25)
            for stage, num in enumerate(config.layers)
        )
        sizes = ByoModelCfg(
            blocks=blocks,
            stem_chs=(width // 2, width // 2, width),
            stem_type="",
            stem_pool="avg2",
            downsample="avg",
            aa_layer="avg",
            head_type="attn_abs",
        )
        self.net = ByobNet(sizes, num_classes=projection_dim, img_size=config.image_size)

    def train(self, mode: bool = True) -> Self:
        """Training mode, but for batch norms: they keep the statistics of pretraining. Those of a
        few pictures would be others, and would differ from rank to rank."""
        super().train(mode)
        for module in self.net.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """(u, 3, h, w) -> `pooler_output` (u, d). Takes and ignores Hugging Face's options."""
        return BaseModelOutputWithPooling(pooler_output=self.net(pixel_values))


class ResNetClip(CLIPModel):
    """Hugging Face's CLIPModel with a ResNet as its vision tower."""

    config_class = ResNetClipConfig

    def __init__(self, config: Any) -> None:
        CLIPPreTrainedModel.__init__(self, config)  # not CLIPModel's, which makes a ViT
        self.projection_dim = config.projection_dim
        self.text_embed_dim = config.text_config.hidden_size
        self.text_model = CLIPTextModel._from_config(config.text_config)
        self.vision_model = ResNetTower(config.vision_config, config.projection_dim)
        self.visual_projection = nn.Identity()  # the attention pool projects
        self.text_projection = nn.Linear(self.text_embed_dim, self.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # timm has drawn its own weights, and the text tower those of its layers.
        if module is self.text_projection:
            std = self.text_embed_dim**-0.5 * self.config.initializer_factor
            nn.init.normal_(self.text_projection.weight, std=std)


# Else transformers warns, of each folder whose tokenizer it reads, that it does not know the type.
AutoConfig.register(ResNetClipConfig.model_type, ResNetClipConfig, exist_ok=True)
