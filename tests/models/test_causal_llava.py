"""A causal model with the weights of a LLaVA computes what LLaVA computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlavaConfig, LlavaForConditionalGeneration

from tests.toys.causal import TASKS, save_model
from vlds.models.build import ModelSetup, build_model
from vlds.models.kinds.causal import Causal
from vlds.models.vision import StoredFeatures
from vlds.schema import IGNORED_LABEL, Batch

IMAGE_TOKEN, NUM_TOKENS = 303, 4


def llava() -> LlavaForConditionalGeneration:
    """A tiny LLaVA with random weights, which sees 2 x 2 patches."""
    torch.manual_seed(4)
    vision = {
        "model_type": "clip_vision_model", "hidden_size": 12, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
    }  # fmt: skip
    text = {
        "model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "vocab_size": 304,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    }  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE_TOKEN)
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    return model.eval()


@torch.no_grad()
def test_the_loss_is_llavas(tmp_path: Path) -> None:
    theirs = llava()
    projector = theirs.model.multi_modal_projector.state_dict()
    save_file({name: t.contiguous() for name, t in projector.items()}, tmp_path / "p.safetensors")
    save_model(tmp_path / "text")
    kind = Causal(
        path=str(tmp_path / "text"),
        vision=StoredFeatures(dim=12, grid=2),
        projector_weights=str(tmp_path / "p.safetensors"),
    )
    model = build_model(ModelSetup(kind=kind), TASKS, torch.float32, kind.load_processor()).eval()
    model.backbone.model.load_state_dict(theirs.model.language_model.state_dict())
    model.backbone.lm_head.load_state_dict(theirs.lm_head.state_dict())

    pixels, words = torch.randn(2, 3, 16, 16), torch.randint(5, 300, (2, 9))
    places = torch.full((2, NUM_TOKENS), IMAGE_TOKEN)
    labels = words.clone()
    labels[:, :5] = IGNORED_LABEL
    loss = theirs(
        input_ids=torch.cat([places, words], 1),
        pixel_values=pixels,
        labels=torch.cat([torch.full_like(places, IGNORED_LABEL), labels], 1),
    ).loss
    # LLaVA takes the last layer but one, without the class token.
    seen = theirs.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    examples = Batch(
        ids=["a", "b"],
        task_index=torch.tensor([0, 1]),
        input_ids=words,
        attention_mask=torch.ones_like(words, dtype=torch.bool),
        labels=labels,
        weights=torch.ones(2),
        valid=torch.ones(2, dtype=torch.bool),
        image_index=torch.tensor([[0], [1]]),
        features=seen,
        labels_on_prompt=True,
    )
    assert float(model.token_nll(examples).sum() / 8) == pytest.approx(float(loss), abs=1e-6)
