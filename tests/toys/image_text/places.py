"""Where the parts of each type are."""

from __future__ import annotations

from typing import NamedTuple


class Places(NamedTuple):
    """Paths of a model's parts."""

    language: str
    vision: str
    connector: tuple[str, ...]
    """Modules, or bare parameters, that hold all parameters of the connector."""


PROJECTOR = ("model.multi_modal_projector",)
TOWER = ("model.language_model", "model.vision_tower")
PLACES = {
    "qwen2_vl": Places("model.language_model", "model.visual", ("model.visual.merger",)),
    "qwen2_5_vl": Places("model.language_model", "model.visual", ("model.visual.merger",)),
    "qwen3_vl": Places(
        "model.language_model",
        "model.visual",
        ("model.visual.merger", "model.visual.deepstack_merger_list"),
    ),
    "smolvlm": Places("model.text_model", "model.vision_model", ("model.connector",)),
    "idefics3": Places("model.text_model", "model.vision_model", ("model.connector",)),
    "llava": Places(*TOWER, PROJECTOR),
    "llava_onevision": Places(*TOWER, (*PROJECTOR, "model.image_newline")),
    "paligemma": Places(*TOWER, PROJECTOR),
    "gemma3": Places(*TOWER, PROJECTOR),
    "internvl": Places(*TOWER, PROJECTOR),
    "florence2": Places(*TOWER, PROJECTOR),
    **dict.fromkeys(
        ("qwen3_5", "glm4v", "glm4v_moe", "glm46v"),
        Places("model.language_model", "model.visual", ("model.visual.merger",)),
    ),
    "qwen3_vl_moe": Places(
        "model.language_model",
        "model.visual",
        ("model.visual.merger", "model.visual.deepstack_merger_list"),
    ),
    **dict.fromkeys(
        (
            "lfm2_vl",
            "vipllava",
            "mistral3",
            "aya_vision",
            "cohere2_vision",
            "got_ocr2",
            "perception_lm",
        ),
        Places(*TOWER, PROJECTOR),
    ),
    "llava_next": Places(*TOWER, (*PROJECTOR, "model.image_newline")),
    "idefics2": Places("model.text_model", "model.vision_model", ("model.connector",)),
    "blip-2": Places(
        "language_model.model",
        "vision_model",
        ("query_tokens", "qformer", "language_projection"),
    ),
    "ovis2": Places(*TOWER, ("model.visual_embeddings_table",)),
    "paddleocr_vl": Places("model.language_model", "model.visual", ("model.projector",)),
    "video_llama_3": Places("model.language_model", "model.vision_model", ("model.projector",)),
    "lighton_ocr": Places(
        "model.language_model", "model.vision_encoder", ("model.vision_projection",)
    ),
    "deepseek_vl": Places("model.language_model", "model.vision_model", ("model.aligner",)),
    "gemma4": Places(*TOWER, ("model.embed_vision",)),
}
"""Type -> its places, as the sources of transformers name them."""
