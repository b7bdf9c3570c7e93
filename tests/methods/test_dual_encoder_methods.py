"""What every method keeps on CLIP, with a ViT or a ResNet: each weight that it trains gets a
gradient, or it is refused with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.toys.dual import build, classed, colour_head, save_clip, save_resnet_clip
from tests.toys.method_cases import METHOD_CASES
from vlds.models.methods.host import zero_at_first

REFUSED = {
    "HyperPELT": "visual: got true",
    "HyperPELT tasks alone": "it puts keys and values into attention layers",
    "HyperPELT adapters alone": "",
    "LST": "no encoder and decoder",
    "LoRA few": "plays the role 'cross_attn_v'",
    "DecoderPromptTuning": "plays the role 'decoder_positions'",
    "PrefixTuning": "it puts keys and values into attention layers",
    "PromptTuning": "takes no prompts",
    "SimAdapter": "guide: got .* set guide: 0",
    "VLPET": "plays the role 'cross_attn_v'",
}
"""Method, or one case of it -> pattern of the reason; "": it is not refused."""
NO_STACK = "vision_model.net.head.* is in no numbered layer; the method needs a stack of layers"
REFUSED_BY_RESNET = {
    "APoLLo": "a ResNet has none; choose a CLIP with a vision transformer",
    "Hyperformer": NO_STACK,
    "HyperPELT tasks alone": NO_STACK,
    "HyperPELT adapters alone": NO_STACK,
    "PrefixTuning": "keys of ResNetClip are 16 and 256 wide",
}
"""The same, of a model with a ResNet alone."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    parent = tmp_path_factory.mktemp("clip")
    return {"ViT": save_clip(parent / "vit"), "ResNet": save_resnet_clip(parent / "resnet")}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", METHOD_CASES)
@pytest.mark.parametrize("tower", ["ViT", "ResNet"])
def test_a_step_trains_every_weight_or_the_method_is_refused(
    tower: str, name: str, folders: dict[str, Path]
) -> None:
    methods = {"method": METHOD_CASES[name].method}
    refused = REFUSED | (REFUSED_BY_RESNET if tower == "ResNet" else {})
    if reason := refused.get(name, refused.get(name.partition(" ")[0])):
        with pytest.raises(ValueError, match=f"^methods.method: .*{reason}"):
            build(folders[tower], methods, head=colour_head())
        return
    model = build(folders[tower], methods, head=colour_head()).train()
    model.context.begin_step(seed=0, step=1)
    statistics = {n: b.clone() for n, b in model.named_buffers() if "running" in n}
    model(classed(model, [0, 1, 2, 3]), torch.ones(4)).loss.backward()
    unmoved = zero_at_first(model)
    for tensor in model.trained_by:
        gradient = model.get_parameter(tensor).grad
        assert gradient is not None, tensor
        assert gradient.any() or tensor in unmoved, tensor
    assert len(statistics) == (2 * (3 + 4 * 4) if tower == "ResNet" else 0)
    for buffer, before in statistics.items():
        assert torch.equal(model.get_buffer(buffer), before), buffer
