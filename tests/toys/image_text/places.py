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
}
"""Type -> its places, as the sources of transformers name them."""
