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
    is_third = model_type.startswith("qwen3")
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
    **dict.fromkeys(
        ("glm4v", "glm4v_moe"),
        lambda: {
            "image_processor": hf.Glm4vImageProcessor(**AREA),
            "video_processor": hf.Glm4vVideoProcessor(**AREA),
        },
    ),
    "glm46v": lambda: {
        "image_processor": hf.Glm46VImageProcessor(**AREA),
        "video_processor": hf.Glm46VVideoProcessor(**AREA),
    },
    "lfm2_vl": lambda: {
        "image_processor": hf.Lfm2VlImageProcessor(
            tile_size=SIDE,
            encoder_patch_size=7,
            min_image_tokens=1,
            max_image_tokens=4,
            max_tiles=4,
        ),
    },
    "llava_next": lambda: {
        "image_processor": hf.LlavaNextImageProcessor(
            size={"shortest_edge": SIDE}, crop_size=SQUARE, image_grid_pinpoints=GRID
        ),
        "patch_size": 14,
        "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": "default",
    },
    "vipllava": lambda: {
        "image_processor": hf.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SQUARE),
        "patch_size": 14,
        "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": "default",
    },
    "mistral3": lambda: {
        "image_processor": hf.PixtralImageProcessor(
            size={"longest_edge": 2 * SIDE}, patch_size={"height": 14, "width": 14}
        ),
        "patch_size": 14,
        "spatial_merge_size": 2,
    },
    "lighton_ocr": lambda: {
        "image_processor": hf.PixtralImageProcessor(
            size={"longest_edge": 2 * SIDE}, patch_size={"height": SIDE, "width": SIDE}
        ),
        "patch_size": 14,
        "spatial_merge_size": 2,
    },
    "aya_vision": lambda: {
        "image_processor": hf.GotOcr2ImageProcessor(size=SQUARE, max_patches=2),
        "patch_size": 7,
        "img_size": SIDE,
        "downsample_factor": 2,
    },
    "cohere2_vision": lambda: {
        "image_processor": hf.Cohere2VisionImageProcessor(size=SQUARE, max_patches=2, patch_size=2),
    },
    "idefics2": lambda: {
        "image_processor": hf.Idefics2ImageProcessor(
            size={"shortest_edge": 14, "longest_edge": SIDE}
        ),
        "image_seq_len": 3,
    },
    "got_ocr2": lambda: {
        "image_processor": hf.GotOcr2ImageProcessor(size={"height": 64, "width": 64}),
    },
    "blip-2": lambda: {
        "image_processor": hf.BlipImageProcessor(size=SQUARE),
        "num_query_tokens": 3,
    },
    "perception_lm": lambda: {
        "image_processor": hf.PerceptionLMImageProcessor(tile_size=SIDE, max_num_tiles=2),
        "video_processor": hf.PerceptionLMVideoProcessor(size=SQUARE),
        "patch_size": 14,
        "pooling_ratio": 1,
    },
    "ovis2": lambda: {
        "image_processor": hf.Ovis2ImageProcessor(size=SQUARE, crop_to_patches=True, max_patches=2),
        "image_seq_length": 4,
    },
    "paddleocr_vl": lambda: {"image_processor": hf.PaddleOCRVLImageProcessor(**AREA)},
    "video_llama_3": lambda: {
        "image_processor": hf.VideoLlama3ImageProcessor(**AREA, merge_size=2),
        "video_processor": hf.VideoLlama3VideoProcessor(**AREA, merge_size=2),
    },
    "deepseek_vl": lambda: {
        "image_processor": hf.DeepseekVLImageProcessor(size=SQUARE),
        "num_image_tokens": 4,
    },
    "gemma4": lambda: {
        "image_processor": hf.Gemma4ImageProcessor(
            patch_size=7, pooling_kernel_size=2, max_soft_tokens=70
        ),
        "video_processor": hf.Gemma4VideoProcessor(),
        "feature_extractor": hf.Gemma4AudioFeatureExtractor(),
        "image_seq_length": 4,
    },
    "florence2": lambda: {
        "image_processor": hf.CLIPImageProcessor(
            size=SQUARE, do_center_crop=False, image_seq_length=5
        ),
    },
}
"""Type -> the fields of its processor beside tokenizer and template."""
