"""The parts of each image-text-to-text type are found, and hold all weights but the head's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KNOWN_TYPES,
)

from tests.toys.image_text import TYPES
from tests.toys.image_text.configs import config
from tests.toys.image_text.places import PLACES
from tests.toys.image_text.words import tokenizer
from vlds.models.kinds.image_text import find_parts

SHALLOW = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
}  # fmt: skip


def shapes(model_type: str, **fields: Any) -> Any:
    """A model of a type on the meta device: the tiny one, or one with fields."""
    if model_type in TYPES:
        built = config(model_type, tokenizer(model_type))
    elif model_type in KNOWN_TYPES:
        built = AutoConfig.for_model(model_type, **fields)
    else:
        pytest.skip(f"this version of transformers does not know {model_type}")
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(built)


@pytest.mark.parametrize("model_type", TYPES)
def test_parts_are_where_the_type_has_them(model_type: str) -> None:
    """Each weight is in one of them, or the head."""
    model, places = shapes(model_type), PLACES[model_type]
    parts = find_parts(model)
    assert (parts.language, parts.vision) == (places.language, places.vision)
    names = [name for name, _ in model.named_parameters()]
    inside = tuple(f"{place}." for place in places.connector)
    expected = [name for name in names if name in places.connector or name.startswith(inside)]
    assert list(parts.connector) == expected
    connector = set(expected)
    language = {name for name in names if name.startswith(f"{parts.language}.")}
    vision = {name for name in names if name.startswith(f"{parts.vision}.")} - connector
    assert all([language, vision, connector])
    rest = set(names) - language - vision - connector
    assert rest == {"lm_head.weight"} & set(names)
    assert len(names) == len(language) + len(vision) + len(connector) + len(rest)


def test_a_decoder_with_a_head_counts_without_it() -> None:
    text = {"model_type": "opt", "ffn_dim": 32, "word_embed_proj_dim": 32, "vocab_size": 40}
    blip2 = shapes(
        "blip-2",
        text_config={**text, **SHALLOW},
        vision_config=SHALLOW,
        qformer_config={**SHALLOW, "encoder_hidden_size": 32},
    )
    parts = find_parts(blip2)
    assert (parts.language, parts.vision) == ("language_model.model", "vision_model")
    starts = {name.split(".")[0] for name in parts.connector}
    assert starts == {"query_tokens", "qformer", "language_projection"}


@pytest.mark.parametrize(
    ("model_type", "module"),
    [
        ("granite_docling", ".vision_model.connector."),
        ("hy_v4_vl", ".vision_tower.patch_merger."),
        ("qwen2_5_omni_thinker", ".visual.merger."),
    ],
)
def test_the_connector_is_found_beside_other_modules(model_type: str, module: str) -> None:
    """Inside the vision encoder; an encoder of sound is no connector."""
    model = shapes(model_type)
    expected = [name for name, _ in model.named_parameters() if module in f".{name}"]
    assert expected
    assert list(find_parts(model).connector) == expected


SMALL_TOWER = {"hidden_size": 32, "mlp_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("model_type", "fields", "connector", "outside"),
    [
        (
            "deepseek_vl_hybrid",
            {"text_config": SHALLOW, "high_res_vision_config": SMALL_TOWER},
            {
                "model.high_res_vision_alpha", "model.high_res_vision_neck",
                "model.high_res_vision_proj", "model.aligner",
            },
            {"model.high_res_vision_model"},
        ),
        (
            "video_llava",
            {"text_config": SHALLOW},
            {"model.multi_modal_projector"},
            {"model.video_tower"},
        ),
        (
            "janus",
            {"text_config": SHALLOW},
            {"model.aligner"},
            {
                "model.vqmodel", "model.generation_embeddings", "model.generation_aligner",
                "model.generation_head",
            },
        ),
        ("gemma3n", {}, {"model.embed_vision"}, {"model.embed_audio", "model.audio_tower"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_further_towers_are_not_in_the_connector(
    model_type: str, fields: dict[str, Any], connector: set[str], outside: set[str]
) -> None:
    """Nor what embeds sound, or draws pictures."""
    model = shapes(model_type, **fields)
    found = find_parts(model)
    places = {".".join(name.split(".")[:2]) for name, _ in model.named_parameters()}
    assert {".".join(name.split(".")[:2]) for name in found.connector} == connector
    assert outside <= places - {found.language, found.vision}


def test_types_without_separate_parts_are_refused() -> None:
    with torch.device("meta"):
        llama = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SHALLOW))
    small = {"embed_dim": 32, "num_hidden_layers": 1}
    for model, message in (
        (
            shapes("fuyu", text_config={"model_type": "persimmon", **SHALLOW, "vocab_size": 40}),
            r"fuyu: .* no separate vision encoder; choose a type",
        ),
        (llama, r"llama: .* no separate vision encoder"),
        (
            shapes("idefics", **SHALLOW, vocab_size=40, vision_config=small),
            r"idefics: .* inside their language model; choose a type",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            find_parts(model)
