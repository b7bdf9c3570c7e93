"""What every method keeps on CLIP: each weight that it trains gets a gradient, or it is refused
with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.toys.dual import build, classed, colour_head, save_clip
from tests.toys.method_cases import METHOD_CASES
from vlds.models.methods.host import zero_at_first

REFUSED = {
    "HyperPELT": "visual: got true",
    "HyperPELT tasks alone": "it puts keys and values into attention layers",
    "LST": "no encoder and decoder",
    "LoRA few": "plays the role 'cross_attn_v'",
    "DecoderPromptTuning": "plays the role 'decoder_positions'",
    "PrefixTuning": "it puts keys and values into attention layers",
    "PromptTuning": "CLIPModel takes no prompts",
    "SimAdapter": "guide: got .* set guide: 0",
    "VLPET": "plays the role 'cross_attn_v'",
}
"""Method, or one case of it -> pattern of the reason."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip") / "clip")


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", METHOD_CASES)
def test_a_step_trains_every_weight_or_the_method_is_refused(name: str, folder: Path) -> None:
    methods = {"method": METHOD_CASES[name].method}
    reason = REFUSED.get(name) or REFUSED.get(name.partition(" ")[0])
    if reason is not None and name != "HyperPELT adapters alone":
        with pytest.raises(ValueError, match=f"^methods.method: .*{reason}"):
            build(folder, methods, head=colour_head())
        return
    model = build(folder, methods, head=colour_head()).train()
    model.context.begin_step(seed=0, step=1)
    model(classed(model, [0, 1, 2, 3]), torch.ones(4)).loss.backward()
    unmoved = zero_at_first(model)
    for tensor in model.trained_by:
        gradient = model.get_parameter(tensor).grad
        assert gradient is not None, tensor
        assert gradient.any() or tensor in unmoved, tensor
