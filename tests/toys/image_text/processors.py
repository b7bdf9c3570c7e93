"""Processors of tiny models."""

from __future__ import annotations

from typing import Any

import transformers as hf
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from tests.toys.image_text.configs import GRID, SIDE
from tests.toys.image_text.words import WORDS

SQUARE = {"height": SIDE, "width": SIDE}
AREA = {"size": {"shortest_edge": SIDE**2, "longest_edge": (2 * SIDE) ** 2}, "patch_size": 14}
"""Qwen's sizes: one to four visual tokens a picture."""
TILES = {"size": {"longest_edge": 2 * SIDE}, "max_image_size": {"longest_edge": SIDE}}
"""SmolVLM's and Idefics3's: at most four tiles and the whole picture."""


def processor(model_type: str, words: hf.PreTrainedTokenizerFast) -> hf.ProcessorMixin:
    """A type's processor, with its chat template."""
    build = getattr(hf, PROCESSOR_MAPPING_NAMES[model_type])
    fields = qwen_fields(model_type) if "qwen" in model_type else FIELDS[model_type]()
    return build(tokenizer=words, chat_template=WORDS[model_type].template, **fields)


def qwen_fields(model_type: str) -> dict[str, Any]:
    """Image and video processor of a Qwen."""
    is_third = model_type == "qwen3_vl"
    video = hf.Qwen3VLVideoProcessor if is_third else hf.Qwen2VLVideoProcessor
    return {
        "image_processor": hf.Qwen2VLImageProcessor(**AREA),
        "video_processor": video(**AREA),
    }


FIELDS = {
    "smolvlm": lambda: {
        "image_processor": hf.SmolVLMImageProcessor(**TILES),
        "video_processor": hf.SmolVLMVideoProcessor(**TILES),
        "image_seq_len": 4,
    },
    "idefics3": lambda: {
        "image_processor": hf.Idefics3ImageProcessor(**TILES),
        "image_seq_len": 4,
    },
    "llava": lambda: {
        "image_processor": hf.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SQUARE),
        "patch_size": 14,
        "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": "default",
    },
    "llava_onevision": lambda: {
        "image_processor": hf.LlavaOnevisionImageProcessor(size=SQUARE, image_grid_pinpoints=GRID),
        "video_processor": hf.LlavaOnevisionVideoProcessor(size=SQUARE),
        "num_image_tokens": 4,
        "vision_feature_select_strategy": "full",
    },
    "paligemma": lambda: {
        "image_processor": hf.SiglipImageProcessor(size=SQUARE, image_seq_length=4),
    },
    "gemma3": lambda: {
        "image_processor": hf.Gemma3ImageProcessor(size=SQUARE),
        "image_seq_length": 4,
    },
    "internvl": lambda: {
        "image_processor": hf.GotOcr2ImageProcessor(
            size=SQUARE, crop_to_patches=True, max_patches=3
        ),
        "video_processor": hf.InternVLVideoProcessor(size=SQUARE),
        "image_seq_length": 4,
    },
    "florence2": lambda: {
        "image_processor": hf.CLIPImageProcessor(
            size=SQUARE, do_center_crop=False, image_seq_length=5
        ),
    },
}
"""Type -> the fields of its processor beside tokenizer and template."""
