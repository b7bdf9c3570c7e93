"""CLIP's vision transformer from Hugging Face: the grid's tokens of its last layer, without the
class token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from vlds.pretrained.gate import check_model
from vlds.pretrained.weights import check_config, load_weights, read_config
from vlds.runtime.checks import check_path_or_config
from vlds.runtime.resources import find
from vlds.schema import ImageSpec
from vlds.vision.base import Geometry, GridEncoder, VisionEncoder, on_meta

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size",
    "patch_size",
)  # fmt: skip
"""Fields of the config that are numbers from 1."""
COMPUTED = ("hidden_act", "layer_norm_eps")
"""Other fields that change the features."""
LAYERS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_out": "self_attn.out_proj",
    "ffn_in": "mlp.fc1",
    "ffn_out": "mlp.fc2",
}
"""Role -> linear layer of a transformer block."""


@dataclass(frozen=True, kw_only=True)
class ClipVision(VisionEncoder):
    """CLIP's vision transformer."""

    path: str | None = None
    """Pretrained weights: a Hugging Face hub name or a local folder."""
    config: str | None = None
    """Instead of `path`: a config.json of CLIP's vision model, for random weights."""

    roles: ClassVar[dict[str, tuple[str, ...]]] = {
        role: (f"*.encoder.layers.*.{layer}", f"*.*.encoder.layers.*.{layer}")
        for role, layer in LAYERS.items()
    }

    def __post_init__(self) -> None:
        check_path_or_config(self)

    def read_config(self) -> Any:
        """The vision part's Hugging Face config."""
        field = f"model.vision.{'path' if self.config is None else 'config'}"
        source = str(self.path) if self.config is None else str(find(self.config))
        config, _ = read_config(CLIPVisionConfig, source, field)
        check_config(config, f"{field}: {source}", SIZES)
        return config

    @property
    def geometry(self) -> Geometry:
        config = self.read_config()
        size = config.image_size
        return Geometry(ImageSpec(size, size), size // config.patch_size, config.hidden_size)

    @property
    def source(self) -> str | None:
        return self.path

    def check_sources(self) -> None:
        if self.path is not None:
            check_model(self.path, "model.vision.path")

    def export(self, encoder: nn.Module, folder: Path) -> VisionEncoder:
        """In Hugging Face's own layout."""
        assert isinstance(encoder, ClipModule)
        encoder.net.save_pretrained(folder / "vision")
        return replace(self, path=str(folder / "vision"), config=None)

    def build(self, dtype: torch.dtype) -> GridEncoder:
        return ClipModule(self.build_net(dtype))

    def build_net(self, dtype: torch.dtype) -> Any:
        """Hugging Face's model."""
        config = self.read_config()
        if self.path is not None and not on_meta():
            net, _ = load_weights(CLIPVisionModel, self.path, config, dtype, "model.vision.path")
            return net
        return CLIPVisionModel(config).to(dtype)


class ClipModule(GridEncoder):
    """CLIP's vision transformer."""

    def __init__(self, net: Any) -> None:
        super().__init__(MEAN, STD)
        self.net = net

    def features(self, pixels: Tensor) -> Tensor:
        states: Tensor = self.net(pixel_values=pixels).last_hidden_state
        return states[:, 1:]

    @property
    def settings(self) -> Mapping[str, Any]:
        """Of Hugging Face's config, what the layers compute with."""
        return {name: getattr(self.net.config, name) for name in (*SIZES, *COMPUTED)}
