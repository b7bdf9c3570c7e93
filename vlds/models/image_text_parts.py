"""Finds the parts of a model of `AutoModelForImageTextToText`: vision, connector, language."""

from __future__ import annotations

from typing import Any, NamedTuple

CONNECTOR_IN_TOWER = ("merger", "deepstack_merger")
"""Beginnings of names of children of a vision tower that belong to the connector (Qwen)."""


class FoundParts(NamedTuple):
    """The parts of a model, by paths in it."""

    language: str
    """Path of the language model, without its head."""
    vision: str | None
    """Path of the vision tower; None if there is no separate one."""
    connector: list[str]
    """Names of the parameters between them, which may be bare ones."""


def find_parts(model: Any) -> FoundParts:
    """The parts of a Hugging Face model.

    Errors: ValueError if the model's class names no language model.
    """
    paths = {module: path for path, module in reversed(list(model.named_modules()))}
    decoder = model.get_decoder()
    language = paths.get(decoder)
    if not language:
        raise ValueError(f"model: {type(model).__name__} does not say which part is the decoder")
    tower = model.get_encoder(modality="image")
    vision = paths.get(tower) or None
    if vision is None or vision == language or next(tower.parameters(), None) is None:
        vision = None
    head = {id(p) for p in model.get_output_embeddings().parameters()}
    connector = [
        name
        for name, parameter in model.named_parameters()
        if id(parameter) not in head and in_connector(name, language, vision)
    ]
    return FoundParts(language, vision, connector)


def in_connector(name: str, language: str, vision: str | None) -> bool:
    """True for a parameter that lies neither in the language model nor in the tower proper."""
    if name.startswith(f"{language}."):
        return False
    if vision is None or not name.startswith(f"{vision}."):
        return True
    return name.removeprefix(f"{vision}.").startswith(CONNECTOR_IN_TOWER)
