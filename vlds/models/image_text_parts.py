"""Finds the parts of Hugging Face's image-text-to-text models: language, vision and connector."""

from __future__ import annotations

import re
from typing import NamedTuple

from torch import nn
from transformers import PreTrainedModel

BRIDGES = ("merger", "deepstack_merger", "patch_merger", "connector")
"""What modules of the connector that lie inside a vision encoder, as in Qwen's models, are called,
or begin with."""
BESIDE = re.compile(r"(^|[._])(audio|generation)(?![a-z])")
"""What is called so lies neither in the connector nor in a tower: it embeds sound, or draws
pictures."""
TEXT = "input_ids"
"""Main input of Hugging Face's models that do not read pictures or sound themselves, such as the
Q-Former of BLIP-2, which reads what the vision tower gives."""


class ImageTextParts(NamedTuple):
    """Where a model's parts are. The head belongs to none of them."""

    language: str
    """Path of the module that reads text and visual tokens; it holds the table of tokens."""
    vision: str
    """Path of the module that reads pictures. In some types it holds the connector too."""
    connector: tuple[str, ...]
    """Names of the parameters between the two; empty where language attends to vision directly.
    Further towers, and what embeds sound or draws pictures, are in none of the parts."""

    def connector_in(self, path: str) -> frozenset[str]:
        """The connector's parameters inside a part, relative to its path."""
        start = f"{path}."
        return frozenset(n.removeprefix(start) for n in self.connector if n.startswith(start))


def find_parts(model: PreTrainedModel) -> ImageTextParts:
    """The parts of a loaded model, or of its shapes on the meta device, before methods attach.

    Errors: ValueError if vision and language are not separate modules.
    """
    vision = own_encoder(model, "image")
    if vision is None:
        raise ValueError(
            f"{model.config.model_type}: models of this type have no separate vision encoder; "
            "choose a type that has one, such as qwen2_5_vl"
        )
    decoder = model.get_decoder()
    # BLIP-2's decoder is a whole causal language model, with a head.
    language = decoder if decoder.get_output_embeddings() is None else decoder.base_model
    if vision in language.modules():
        raise ValueError(
            f"{model.config.model_type}: models of this type read pictures inside their language "
            "model; choose a type with a separate language model, such as qwen2_5_vl"
        )
    towers = (vision, own_encoder(model, "audio"), *further_towers(model, vision))
    others = parameter_ids(decoder, model.get_output_embeddings(), *towers)
    others -= parameter_ids(*bridges(vision))
    paths = {module: path for path, module in model.named_modules()}
    connector = (
        name
        for name, p in model.named_parameters()
        if id(p) not in others and not BESIDE.search(name)
    )
    return ImageTextParts(paths[language], paths[vision], tuple(connector))


def own_encoder(model: PreTrainedModel, modality: str) -> nn.Module | None:
    """The module that reads pictures or sound, and no text; None if there is none."""
    # Models without one give themselves, None, or an encoder that reads text too. So do
    # decoder-only models if no modality is named.
    encoder: nn.Module | None = model.get_encoder(modality=modality)
    if encoder is None or model.get_input_embeddings() in encoder.modules():
        return None
    return encoder


def further_towers(model: PreTrainedModel, vision: nn.Module) -> list[nn.Module]:
    """Models inside a model that read pictures or sound themselves, and neither read text nor hold
    the vision encoder: one of high resolution, of video, of pictures that the model draws."""
    around = {model.get_input_embeddings(), vision}
    return [
        module
        for module in model.modules()
        if isinstance(module, PreTrainedModel)
        and module.main_input_name != TEXT
        and around.isdisjoint(module.modules())
    ]


def bridges(vision: nn.Module) -> list[nn.Module]:
    """Modules inside the vision encoder that belong to the connector."""
    return [child for name, child in vision.named_children() if name.startswith(BRIDGES)]


def parameter_ids(*modules: nn.Module | None) -> set[int]:
    """Ids of all parameters of some modules."""
    return {id(p) for module in modules if module is not None for p in module.parameters()}
