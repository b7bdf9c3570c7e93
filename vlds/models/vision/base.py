"""Vision encoders: uint8 pictures in, a grid of feature vectors out.

Shapes: u pictures, grid x grid cells in row-major order, dim channels.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vlds.models.loading.model_files import check_tensors, save_module
from vlds.models.loading.resizing import resized, resizes_of
from vlds.models.peers import Peer
from vlds.runtime.checks import Choice
from vlds.schema import ImageSpec, TargetModules


@dataclass(frozen=True)
class Geometry:
    """Sizes of an encoder's input and of its grid."""

    image: ImageSpec | None
    """Square pictures that the encoder takes; their aspect ratio is not kept. None if it takes
    features from the shards."""
    grid_size: int
    """Cells along a side."""
    feature_dim: int
    """Channels of a cell."""
    class_token: bool = False
    """True if a token of the whole picture stands before the grid."""
    box_channels: int = 0
    """Channels of stored features behind those of the cell: the numbers of its box."""

    @property
    def num_tokens(self) -> int:
        """Tokens of a picture."""
        return self.grid_size**2 + self.class_token


@dataclass(frozen=True, kw_only=True)
class VisionEncoder(Choice, ABC):
    """Turns pictures into grid features."""

    roles: ClassVar[dict[str, tuple[str, ...]]] = {}
    """Role -> path patterns, for methods that tune the encoder."""
    cures: ClassVar[dict[str, str]] = {}
    """Role that the encoder lacks -> what to choose instead."""

    @property
    @abstractmethod
    def geometry(self) -> Geometry:
        """Sizes of the pictures and of the grid, without loading weights."""

    @property
    @abstractmethod
    def source(self) -> str | None:
        """File, folder or hub name of pretrained weights; None if they are random."""

    @abstractmethod
    def build(self, dtype: torch.dtype) -> GridEncoder:
        """The module, with its pretrained weights if it has any. On the meta device: shapes
        only."""

    def check_sources(self) -> None:
        """Check, before any long work, that what the hub is to give can be had.

        Errors: ValueError that names the field.
        """

    def export(self, encoder: nn.Module, folder: Path) -> VisionEncoder:
        """Write a built encoder's weights into a folder; the same encoder that reads them from
        there."""
        names = {f.name for f in fields(self)}
        assert "weights" in names, f"{type(self).__name__} has no weights field: override export"
        file = folder / "vision.safetensors"
        # Weight files have the names of the wrapped net, where there is one.
        saved = save_module(getattr(encoder, "net", encoder), file)
        # The file takes the place of weights that a library would fetch.
        changes: dict[str, Any] = {"weights": saved}
        return replace(self, **changes, **({"pretrained": False} if "pretrained" in names else {}))

    def peers(self, encoder: GridEncoder, pictures: Tensor) -> Iterator[Peer | str]:
        """What the library that the encoder is from computes of pictures (u, ...), beside what the
        built `encoder` does; or why nothing can be compared."""
        yield f"vision encoder: {type(self).__name__} is of vlds alone"

    @property
    def target_modules(self) -> TargetModules:
        """Where methods attach."""
        return TargetModules(self.roles, cures=self.cures)


def normalised(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(u, 3, h, w) uint8 -> float32, of each channel's mean and standard deviation. In float32, so
    that an encoder in half precision gets numbers that are rounded once."""
    pixels = images.float() / 255
    # Not blocking: a GPU would finish all earlier work before it takes these six numbers.
    shift, scale = (
        torch.tensor(each).view(-1, 1, 1).to(images.device, non_blocking=True)
        for each in (mean, std)
    )
    return (pixels - shift) / scale


class GridEncoder(nn.Module):
    """Base of all encoder modules: normalises on the device, and stays in evaluation mode while
    frozen."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.frozen = True
        # Not buffers: casting the model to bf16 would round them.
        self.mean, self.std = list(mean), list(std)

    def train(self, mode: bool = True) -> GridEncoder:
        # In training mode, batch norm would move its statistics, also without gradients.
        super().train(mode and not self.frozen)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """(u, 3, h, w) uint8 -> (u, grid * grid, dim)."""
        pixels = normalised(images, self.mean, self.std)
        return self.features(pixels.to(next(self.parameters()).dtype))

    def boxes(self, images: Tensor) -> Tensor | None:
        """(u, v, 4) boxes (x1, x2, y1, y2) of stored features; None if they come without."""
        return None

    def features(self, pixels: Tensor) -> Tensor:
        """(u, 3, h, w) normalised -> (u, grid * grid, dim)."""
        raise NotImplementedError

    @property
    def settings(self) -> Mapping[str, Any]:
        """Plain values that decide the features beside the weights and the recipe."""
        return {}

    def content_hash(self) -> str:
        """sha256 of the weights and of what else decides the features, wherever they were read."""
        # Settings too: two encoders with equal weights may normalise pictures differently.
        about = {"mean": self.mean, "std": self.std, **self.settings}
        digest = sha256(json.dumps(about, sort_keys=True, default=str).encode())
        for name, tensor in sorted(self.state_dict().items()):
            # As bytes, because numpy has no bfloat16.
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


def freeze(encoder: GridEncoder) -> None:
    """Fix an encoder: no gradients, and evaluation mode until `thaw`."""
    encoder.requires_grad_(False)
    encoder.frozen = True
    encoder.eval()


def thaw(encoder: GridEncoder) -> None:
    """Let all of an encoder train again."""
    encoder.requires_grad_(True)
    encoder.frozen = False
    encoder.train()


def on_meta() -> bool:
    """True while modules are made without storage, so that no weights must be read."""
    return torch.get_default_device().type == "meta"


def load_weights(module: nn.Module, file: str | None) -> None:
    """Fill a module from a safetensors file, if one is named and the module has storage.

    Errors: ValueError if the file is missing or holds other tensors.
    """
    if file is None or on_meta():
        return
    if not Path(file).is_file():
        raise ValueError(f"weights: no such file: {file}; name a .safetensors file")
    wanted = module.state_dict()
    shapes = check_tensors("weights", Path(file), wanted)
    resizes = resizes_of(module)
    # `load_state_dict` would list every tensor. The file may hold more than the module wants.
    wrong = [
        f"{name} {shapes.get(name, 'missing')}, wanted {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if (shape := shapes.get(name)) != tuple(tensor.shape)
        and not (shape and name in resizes and shape[1:] == tuple(tensor.shape[1:]))
    ]
    if wrong:
        raise ValueError(
            f"weights: {file} does not fit {type(module).__name__}: {'; '.join(wrong[:3])}; it "
            f"holds {len(shapes)} tensors, the module {len(wanted)}"
        )
    # Only now, since the shapes were read from the file's header alone.
    tensors = load_file(file)
    module.load_state_dict(
        {name: resized(name, tensors[name], wanted[name].shape, resizes) for name in wanted}
    )
