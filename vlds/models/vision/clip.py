"""CLIP's vision transformer from Hugging Face: `ClipVision` gives the grid's tokens of its last
layer, without the class token; `ClipTokens` gives the tokens that METER reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from vlds.models.loading.gate import check_config, check_model, load_weights, read_config
from vlds.models.loading.resizing import Resizes, for_pictures_of, resized_positions
from vlds.models.peers import Peer, clip_pixels, opened
from vlds.models.vision.base import Geometry, GridEncoder, VisionEncoder, on_meta
from vlds.runtime.checks import Count, Pixels, SourceFile, SourcePath, check_path_or_config
from vlds.runtime.process import find
from vlds.schema import ImageSpec

# Of the pictures that CLIP was trained on, as its preprocessor has them.
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

    path: SourcePath | None = None
    """Pretrained weights: a Hugging Face hub name or a local folder."""
    config: SourceFile | None = None
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

    def peers(self, encoder: GridEncoder, pictures: Tensor) -> Iterator[Peer | str]:
        assert isinstance(encoder, ClipModule)
        config, field = self.read_config(), "model.vision.path"
        if self.path is None:  # the encoder may have fewer blocks, and other positions
            config = encoder.net.config
            config.num_hidden_layers = len(encoder.net.encoder.layers)
            config.image_size = self.geometry.grid_size * config.patch_size
        theirs = opened(CLIPVisionModel, self.path, field, config, encoder.net.state_dict())
        features = self.library_features(theirs, clip_pixels(self.path, field, pictures))
        yield Peer(
            "features of pictures: ours, and Hugging Face's CLIPVisionModel",
            {"all pictures": encoder(pictures)},
            {"all pictures": features},
        )

    def library_features(self, model: Any, pixels: Tensor) -> Tensor:
        """What the encoder gives, by Hugging Face's model."""
        states: Tensor = model(pixel_values=pixels).last_hidden_state
        return states[:, 1:]

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
        return states[:, 1:]  # the class token comes first

    @property
    def settings(self) -> Mapping[str, Any]:
        """Values of Hugging Face's config that the layers compute with."""
        return {name: getattr(self.net.config, name) for name in (*SIZES, *COMPUTED)}


@dataclass(frozen=True, kw_only=True)
class ClipTokens(ClipVision):
    """CLIP's vision transformer as METER reads it (https://arxiv.org/abs/2111.02387): all tokens,
    the class token first, after the last norm and without the last block."""

    image_size: Pixels | None = None
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

    def build(self, dtype: torch.dtype) -> GridEncoder:
        """Errors: ValueError if the encoder has fewer blocks."""
        net = self.build_net(dtype)
        most = int(net.config.num_hidden_layers)
        if (self.blocks or 1) > most:
            raise ValueError(f"model.vision.blocks: got {self.blocks}, and the encoder has {most}")
        # Blocks that do not run are not kept: they would take memory and count as weights.
        del net.encoder.layers[self.blocks or max(1, most - 1) :]
        # Larger pictures than it was trained on have more patches, each with a position.
        embeddings, grid = net.embeddings, self.geometry.grid_size
        table = embeddings.position_embedding.weight
        positions = resized_positions(table.data, grid)
        if len(positions) != len(table):
            embeddings.position_embedding = nn.Embedding.from_pretrained(positions)
            ids = torch.arange(len(positions), device=embeddings.position_ids.device)
            embeddings.position_ids = ids[None]
            embeddings.num_positions, embeddings.num_patches = len(positions), len(positions) - 1
            embeddings.image_size = grid * embeddings.patch_size
        return ClipTokensModule(net)

    def library_features(self, model: Any, pixels: Tensor) -> Tensor:
        layers = int(model.config.num_hidden_layers)
        number = self.blocks or max(1, self.read_config().num_hidden_layers - 1)
        resizes = pixels.shape[-1] != model.config.image_size
        output = model(
            pixel_values=pixels, output_hidden_states=True, interpolate_pos_encoding=resizes
        )
        normed: Tensor = model.post_layernorm(output.hidden_states[min(number, layers)])
        return normed

    def export(self, encoder: nn.Module, folder: Path) -> VisionEncoder:
        """In Hugging Face's own layout, with the blocks and positions that run."""
        assert isinstance(encoder, ClipTokensModule)
        # The config of what was cut and resized, so that the folder opens by itself.
        net, blocks = encoder.net, len(encoder.net.encoder.layers)
        net.config.num_hidden_layers = blocks
        net.config.image_size = self.geometry.grid_size * net.config.patch_size
        net.save_pretrained(folder / "vision")
        return replace(self, path=str(folder / "vision"), config=None, blocks=blocks)


class ClipTokensModule(ClipModule):
    """The transformer's tokens, after its last norm."""

    resizes: ClassVar[Resizes] = {"net.embeddings.position_embedding.weight": for_pictures_of}

    def features(self, pixels: Tensor) -> Tensor:
        """(u, 3, h, w) normalised -> (u, 1 + grid * grid, dim)."""
        states: Tensor = self.net(pixel_values=pixels).last_hidden_state
        normed: Tensor = self.net.post_layernorm(states)
        return normed
