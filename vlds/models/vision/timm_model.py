"""Any model of timm as a frozen encoder: its last feature map.

VL-Adapter's CLIP RN101 is timm's `resnet101_clip.openai`: 2048 channels on a 7x7 grid at 224
pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from vlds.models.loading.model_files import check_source, reading
from vlds.models.loading.resizing import Resizes, for_pictures_of
from vlds.models.peers import Peer
from vlds.models.vision.base import Geometry, GridEncoder, VisionEncoder, load_weights, on_meta
from vlds.runtime.checks import Pixels, SourceFile
from vlds.schema import ImageSpec


@cache
def timm() -> Any:
    """Import the library when a recipe names one of its models: that takes a second and 30 MB."""
    import timm

    return timm


ELSEWHERE = "name a .safetensors file in model.vision.weights"


@dataclass(frozen=True, kw_only=True)
class Timm(VisionEncoder):
    """A timm model's last feature map."""

    # Vision transformers have blocks; Swin has layers of blocks.
    roles: ClassVar[dict[str, tuple[str, ...]]] = {
        role: (f"net.blocks.*.{layer}", f"net.layers.*.blocks.*.{layer}")
        for role, layer in (
            ("attn_out", "attn.proj"),
            ("ffn_in", "mlp.fc1"),
            ("ffn_out", "mlp.fc2"),
        )
    }
    """Layers of transformers; convolutional nets have none."""
    cures: ClassVar[dict[str, str]] = dict.fromkeys(
        ("attn_q", "attn_k", "attn_v"),
        "timm's transformers compute queries, keys and values in one layer; take ClipVision, which "
        "has a layer for each, or a method that needs none of them, such as Adapter or LoRA with "
        "roles: [attn_out, ffn_in, ffn_out]",
    )

    model: str
    """timm's name of the model, like resnet101_clip.openai; `timm.list_models()` lists them."""
    pretrained: bool = False
    """Let timm fetch the weights."""
    weights: SourceFile | None = None
    """Instead: a .safetensors file with the model's weights."""
    image_size: Pixels | None = None
    """Pixels along a side of the square picture; default: what the model was trained on."""

    def __post_init__(self) -> None:
        if self.pretrained and self.weights is not None:
            raise ValueError(
                f"pretrained: true and weights: {self.weights}; give one of them, the file or "
                "timm's own weights"
            )

    @property
    def geometry(self) -> Geometry:
        """The feature map's, from a pass on the meta device."""
        return geometry(self.model, self.image_size)

    @property
    def source(self) -> str | None:
        return self.model if self.pretrained else self.weights

    def build(self, dtype: torch.dtype) -> GridEncoder:
        """The model without its classifier's pooling.

        Errors: ValueError if timm has no weights of it, or they cannot be fetched.
        """
        image = self.geometry.image
        assert image is not None
        if self.pretrained and not on_meta():
            self.check_sources()
            with reading(f"vision.model: timm cannot fetch the weights of {self.model}", ELSEWHERE):
                net = create(self.model, True, image.width)
        else:
            net = create(self.model, False, image.width)
        # Into the net, not into the encoder around it: files have timm's names.
        encoder = TimmModule(net)
        load_weights(net, self.weights)
        return encoder.to(dtype)

    def peers(self, encoder: GridEncoder, pictures: Tensor) -> Iterator[Peer | str]:
        assert isinstance(encoder, TimmModule)
        size = pictures.shape[-1]
        theirs = create(self.model, self.pretrained, size, checkpoint_path=self.weights or "")
        if self.source is None:
            theirs.load_state_dict(encoder.net.state_dict())
        settings = timm().data.resolve_data_config({"crop_pct": 1.0}, model=theirs)
        # The pictures have the model's size already, so that none is cut.
        prepare = timm().data.create_transform(**settings | {"input_size": (3, size, size)})
        arrays = pictures.permute(0, 2, 3, 1).cpu().numpy()
        pixels = torch.stack([prepare(Image.fromarray(array)) for array in arrays])
        theirs = theirs.eval().to(pictures.device)
        yield Peer(
            f"features of pictures: ours, and timm's {self.model}",
            {"all pictures": encoder(pictures)},
            {"all pictures": cells_of(theirs, pixels.to(pictures.device))},
        )

    def check_sources(self) -> None:
        # timm fetches most of its weights from the hub, and some from elsewhere.
        config = timm().get_pretrained_cfg(self.model) if self.pretrained else None
        if config is not None and config.hf_hub_id:
            check_source(config.hf_hub_id, "model.vision.model", ELSEWHERE)


class TimmModule(GridEncoder):
    """A timm model; its classifier stays, unused, so that weight files fit."""

    # Of CLIP's pooling by attention, for pictures of another size.
    resizes: ClassVar[Resizes] = {"net.head.pos_embed": for_pictures_of}

    def __init__(self, net: Any) -> None:
        data = timm().data.resolve_model_data_config(net)
        super().__init__(data["mean"], data["std"])
        self.net = net

    def features(self, pixels: Tensor) -> Tensor:
        return cells_of(self.net, pixels)


def cells_of(net: Any, pixels: Tensor) -> Tensor:
    """(u, 3, h, w) -> (u, cells, dim): a feature map row by row, or a transformer's tokens without
    the leading class tokens."""
    features: Tensor = net.forward_features(pixels)
    if features.dim() == 3:  # a transformer's tokens; class and register tokens come first
        # Models with distillation or registers have several of them.
        return features[:, getattr(net, "num_prefix_tokens", 0) :]
    if getattr(net, "output_fmt", "NCHW") == "NHWC":  # Swin's maps
        return features.flatten(1, 2)
    return features.flatten(2).transpose(1, 2)


def create(model: str, pretrained: bool, image_size: int, **options: Any) -> Any:
    """A timm model for square pictures of a size; fully convolutional ones take any."""
    options["pretrained"] = pretrained
    try:
        return timm().create_model(model, img_size=image_size, **options)
    except TypeError:  # it has no such argument
        return timm().create_model(model, **options)


@lru_cache
def geometry(model: str, image_size: int | None) -> Geometry:
    """Sizes of a model, without its weights.

    Errors: ValueError if timm does not know the model, or it gives no square grid.
    """
    if not timm().is_model(model):
        raise ValueError(f"model.vision.model: timm knows no '{model}'; see timm.list_models()")
    # A pass without numbers: no weights are read, and nothing but shapes is computed.
    with torch.device("meta"):
        data = timm().data.resolve_model_data_config(timm().create_model(model))
        size = image_size or data["input_size"][-1]
        try:
            net = create(model, False, size).eval()
            cells = cells_of(net, torch.zeros(1, 3, size, size))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise ValueError(
                f"model.vision.image_size: {model} cannot read pictures of {size} pixels: {error}"
            ) from None
    grid = round(cells.shape[1] ** 0.5)
    if grid * grid != cells.shape[1]:
        raise ValueError(
            f"model.vision.model: {model} gives {cells.shape[1]} vectors for {size} pixels, which "
            "is not a square grid"
        )
    resize: Any = "bicubic" if data["interpolation"] == "bicubic" else "bilinear"
    return Geometry(ImageSpec(size, size, resize), grid, cells.shape[2])
