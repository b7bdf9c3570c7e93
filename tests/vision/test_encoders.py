"""Every encoder: uint8 pictures in, the grid that it promises out; weights from files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from vlds.models.methods import Adapter
from vlds.models.methods.context import BatchContext
from vlds.models.methods.host import Host
from vlds.models.vision import ClipVision, ConvNet, Timm, VisionEncoder
from vlds.models.vision.base import Geometry
from vlds.models.vision.timm_model import TimmModule
from vlds.schema import ImageSpec

CLIP = {
    "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
}  # fmt: skip


SWIN = "swin_tiny_patch4_window7_224"
"""The smallest that timm has."""


def encoders(folder: Path) -> list[VisionEncoder]:
    """One of each kind."""
    (folder / "clip.json").write_text(json.dumps(CLIP), encoding="utf-8")
    return [
        ConvNet(image_size=16, grid=4, widths=[4, 8, 6]),
        ConvNet(
            image_size=16,
            grid=2,
            widths=[4, 8, 6],
            downsample="pool",
            coordinates=True,
            add_mean=True,
        ),
        Timm(model="resnet18", image_size=64),
        Timm(model="vit_tiny_patch16_224", image_size=64),
        ClipVision(config=str(folder / "clip.json")),
        Timm(model=SWIN, image_size=64),
    ]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("number", range(6))
def test_grid_is_as_promised(number: int, tmp_path: Path) -> None:
    encoder = encoders(tmp_path)[number]
    spec = encoder.geometry.image
    assert spec is not None
    pictures = torch.randint(0, 256, (2, 3, spec.height, spec.width), dtype=torch.uint8)
    for dtype in (torch.float32, torch.bfloat16):
        module = encoder.build(dtype).eval()
        with torch.no_grad():
            features = module(pictures)
        assert features.shape == (2, encoder.geometry.grid_size**2, encoder.geometry.feature_dim)
        assert features.dtype == dtype
        assert torch.isfinite(features).all()


def test_cells_lie_row_by_row() -> None:
    """A white spot shows in its own cell most: row 1, column 3."""
    torch.manual_seed(0)
    module = ConvNet(image_size=16, grid=4, widths=[8, 8]).build(torch.float32).eval()
    black = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    spot = black.clone()
    spot[:, :, 5:7, 13:15] = 255
    with torch.no_grad():
        change = (module(spot) - module(black)).norm(dim=-1)
    assert change.argmax().item() == 1 * 4 + 3


def test_swins_cells_lie_row_by_row() -> None:
    """timm's Swin gives its map with the channels last."""
    module = Timm(model=SWIN, image_size=96).build(torch.float32).eval()
    assert isinstance(module, TimmModule)
    pixels = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        grid, cells = module.net.forward_features(pixels), module.features(pixels)
    assert grid.shape == (1, 3, 3, 768)
    for row, column in ((0, 1), (2, 0)):
        assert torch.equal(cells[:, 3 * row + column], grid[:, row, column])


def test_pictures_are_normalised() -> None:
    module = ConvNet(image_size=8, grid=8, widths=[4]).build(torch.float32)
    seen: list[torch.Tensor] = []
    module.features = lambda pixels: seen.append(pixels) or pixels  # type: ignore[method-assign]
    module(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 8, 8))
    assert seen[0][:, 0, 0, 0].tolist() == [-1.0, 1.0]


def test_clip_takes_the_grid_and_not_the_class_token(tmp_path: Path) -> None:
    net = CLIPVisionModel(CLIPVisionConfig(**{k: v for k, v in CLIP.items() if k != "model_type"}))
    net.save_pretrained(tmp_path / "clip")
    encoder = ClipVision(path=str(tmp_path / "clip"))
    pictures = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    module = encoder.build(torch.float32).eval()
    pixels = (pictures / 255 - torch.tensor(module.mean).view(3, 1, 1)) / torch.tensor(
        module.std
    ).view(3, 1, 1)
    with torch.no_grad():
        expected = net.eval()(pixel_values=pixels).last_hidden_state
        assert torch.allclose(module(pictures), expected[:, 1:], atol=1e-6)
    assert encoder.source == str(tmp_path / "clip")
    host = Host("a", module, encoder.target_modules, ["x"], BatchContext())
    trained = Adapter(part="vision", reduction=4).attach(host)
    assert len(trained) == 2 * 2 * 4
    with pytest.raises(ValueError, match="give exactly one of them"):
        ClipVision()


def test_clip_resnet_101_is_vl_adapters_grid() -> None:
    encoder = Timm(model="resnet101_clip.openai")
    assert encoder.geometry == Geometry(ImageSpec(224, 224, "bicubic"), 7, 2048)
    with torch.device("meta"):
        module = encoder.build(torch.float32)
    assert module.mean == pytest.approx([0.48145466, 0.4578275, 0.40821073])


def test_timm_weights_from_a_file(shared: Path) -> None:
    file = shared / "models/tf_efficientnet_lite0.safetensors"
    encoder = Timm(model="tf_efficientnet_lite0", weights=str(file))
    geometry = encoder.geometry
    assert (geometry.feature_dim, geometry.grid_size, encoder.source) == (1280, 7, str(file))
    pictures = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    first, second = (encoder.build(torch.float32).eval() for _ in range(2))
    with torch.no_grad():
        assert torch.equal(first(pictures), second(pictures))


def test_impossible_fields() -> None:
    with pytest.raises(ValueError, match="grid: 5 does not come from image_size 64 by halving"):
        ConvNet(grid=5)
    with pytest.raises(ValueError, match="are 2 stages, but 64 pixels to 4 cells takes 4"):
        ConvNet(widths=[8, 8])
    with pytest.raises(ValueError, match="timm knows no 'resnet_of_dreams'"):
        _ = Timm(model="resnet_of_dreams").geometry
    with pytest.raises(ValueError, match="give one of them"):
        Timm(model="resnet18", pretrained=True, weights="x.safetensors")
    small = Timm(model="resnet101_clip.openai", image_size=16)
    with pytest.raises(ValueError, match=r"^model\.vision\.image_size: .* pictures of 16 pixels"):
        _ = small.geometry


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"hidden_size": None}, "cannot read the model's config"),
        ({"patch_size": 0}, "patch_size is 0 in the model's config, a number from 1 expected"),
        ({"num_hidden_layers": 1}, "is in no layer of the config"),
        ({"num_hidden_layers": 3}, "is missing"),
        ({"intermediate_size": 8}, "the config asks for"),
    ],
)
def test_a_wrong_config_of_clip_is_named(fields: dict[str, Any], told: str, tmp_path: Path) -> None:
    CLIPVisionModel(CLIPVisionConfig(**CLIP)).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | fields), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"^model\.vision\.path: .*{told}"):
        ClipVision(path=str(tmp_path)).build(torch.float32)
