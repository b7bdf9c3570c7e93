"""Methods in the vision encoder: tasks share them, and pictures are not examples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.toys.models import backbone, batch, build
from vlds.models.backbones import T5
from vlds.models.methods import IA3, Adapter, BitFit, Compacter, LoRA, LowRankAdapter, Method
from vlds.models.methods.host import zero_at_first
from vlds.models.vision import ClipVision, ConvNet, Timm, VisionEncoder
from vlds.schema import Batch

CLIP = {
    "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 24, "patch_size": 8,
}  # fmt: skip
METHODS: dict[str, Method] = {
    "adapter": Adapter(part="vision", reduction=4),
    "compacter": Compacter(part="vision", reduction=4),
    "low rank": LowRankAdapter(part="vision", reduction=4),
    "lora": LoRA(part="vision", rank=2, train_biases=False),
    "ia3": IA3(part="vision"),
    "bitfit": BitFit(part="vision"),
}


def pictures() -> Batch:
    """Four examples about three pictures, the last of two."""
    examples = batch()
    generator = torch.Generator().manual_seed(0)
    examples.images = torch.randint(0, 256, (3, 3, 24, 24), dtype=torch.uint8, generator=generator)
    examples.features = examples.boxes = None
    return examples


def clip(folder: Path) -> VisionEncoder:
    """A tiny CLIP with random weights."""
    (folder / "clip.json").write_text(json.dumps(CLIP), encoding="utf-8")
    return ClipVision(config=str(folder / "clip.json"))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", METHODS)
def test_what_trains_in_clip(name: str, tmp_path: Path) -> None:
    methods = {"eyes": METHODS[name], "words": Adapter(reduction=4, sharing="multiple")}
    model = build(backbone(T5, tmp_path), methods, vision=clip(tmp_path)).eval()
    assert not model.vision.frozen
    model(pictures(), torch.ones(4)).loss.backward()
    mine = [n for n, part in model.trained_by.items() if part == "eyes"]
    assert mine
    assert all(n.startswith("vision.") for n in mine)
    named = dict(model.named_parameters())
    reached = [n for n in mine if named[n].grad is not None and named[n].grad.any()]
    # CLIP's norm behind the class token is not on the way to the grid.
    aside = {n for n in mine if "post_layernorm" in n or n in zero_at_first(model)}
    assert set(mine) - aside == set(reached)


@pytest.mark.parametrize("method", [METHODS["ia3"], METHODS["lora"]])
def test_a_role_that_timm_lacks_is_named_with_the_cure(method: Method, tmp_path: Path) -> None:
    """(IA)^3 used to train the factors of its feed-forward layers alone."""
    encoder = Timm(model="vit_tiny_patch16_224", image_size=32)
    role = "attn_k" if isinstance(method, IA3) else "attn_q"
    expected = (
        f"methods.eyes: no layer of TimmModule plays the role '{role}'; its roles: "
        "attn_out, ffn_in, ffn_out. .* take ClipVision"
    )
    with torch.device("meta"), pytest.raises(ValueError, match=expected):
        build(backbone(T5, tmp_path), {"eyes": method}, vision=encoder)


def test_roles_that_timm_has(tmp_path: Path) -> None:
    """Attention, first and second feed-forward layer of 12 blocks; the biases of all layers."""
    encoder = Timm(model="vit_tiny_patch16_224", image_size=32)
    updates = LoRA(part="vision", roles=["attn_out", "ffn_in", "ffn_out"], train_biases=False)
    with torch.device("meta"):
        model = build(backbone(T5, tmp_path), {"eyes": updates}, vision=encoder)
        biases = build(backbone(T5, tmp_path), {"eyes": METHODS["bitfit"]}, vision=encoder)
    assert sum(part == "eyes" for part in model.trained_by.values()) == 12 * 3 * 2
    mine = {name for name, part in biases.trained_by.items() if part == "eyes"}
    assert sum(name.endswith("attn.qkv.bias") for name in mine) == 12


def test_biases_of_a_convolutional_net(tmp_path: Path) -> None:
    """BitFit needs no roles; without any bias it says so."""
    encoder = ConvNet(image_size=24, grid=3, widths=[4, 4, 4])
    model = build(backbone(T5, tmp_path), {"eyes": METHODS["bitfit"]}, vision=encoder)
    assert sum(part == "eyes" for part in model.trained_by.values()) == 3
    with pytest.raises(ValueError, match=r"methods.eyes: StoredModule has no biases"):
        build(backbone(T5, tmp_path), {"eyes": METHODS["bitfit"]})
