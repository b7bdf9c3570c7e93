"""Tiny models as users of Hugging Face build them, and what they read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from tests.toys.models import hf_config
from vlds.models.backbones import T5, Bart

LAYERS: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip
WORDS: dict[str, Any] = {
    **LAYERS, "vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "max_position_embeddings": 64,
}  # fmt: skip
PIXELS: dict[str, Any] = {**LAYERS, "image_size": 16, "patch_size": 8}
IMAGE_TOKEN = 59


def t5() -> nn.Module:
    return T5ForConditionalGeneration(T5Config(**hf_config(T5)))


def bart() -> nn.Module:
    return BartForConditionalGeneration(BartConfig(**hf_config(Bart)))


def llama() -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**WORDS))


def clip() -> nn.Module:
    return CLIPModel(CLIPConfig(text_config=WORDS, vision_config=PIXELS, projection_dim=12))


def llava() -> nn.Module:
    config = LlavaConfig(
        text_config=LlamaConfig(**WORDS), vision_config=CLIPVisionConfig(**PIXELS),
        image_token_index=IMAGE_TOKEN, image_seq_length=4,
    )  # fmt: skip
    return LlavaForConditionalGeneration(config)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "T5": t5, "Bart": bart, "Llama": llama, "CLIP": clip, "Llava": llava,
}  # fmt: skip


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]().eval()


def inputs(name: str, rows: int = 3) -> dict[str, Tensor]:
    """What a model of this name reads."""
    draw = torch.Generator().manual_seed(rows)
    ids = torch.randint(3, 50, (rows, 9), generator=draw)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if name in ("T5", "Bart"):
        given["decoder_input_ids"] = ids[:, :4]
    if name in ("CLIP", "Llava"):
        given["pixel_values"] = torch.randn(rows, 3, 16, 16, generator=draw)
    if name == "Llava":
        ids[:, 1:5] = IMAGE_TOKEN
    return given


def output(model: nn.Module, name: str, rows: int = 3) -> Tensor:
    made = model(**inputs(name, rows))
    tensor: Tensor = made.logits_per_image if name == "CLIP" else made.logits
    return tensor
