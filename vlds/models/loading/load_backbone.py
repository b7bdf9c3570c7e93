"""Opens a model of Hugging Face that becomes a backbone, with its computed tables in their own
type; and checks that a task's rows fit its table of positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import GenerationConfig

from vlds.models.backbones.base import unique_state
from vlds.models.loading.gate import bounded, unpartitioned
from vlds.models.loading.model_files import reading
from vlds.models.loading.quantised import Bits, load_language, pack_shapes
from vlds.models.vision.base import on_meta


def load_backbone(
    model_class: Any,
    config: Any,
    path: str | None,
    dtype: torch.dtype,
    bits: Bits | None = None,
) -> tuple[Any, set[str]]:
    """The model with the weights of a folder or hub name, and the names of its tensors that come
    from there. Without a path, random weights; on the meta device, shapes. `bits`: those of packed
    layers.

    Errors: SourceError that begins with `model`.
    """
    names: set[str] = set()
    if path is None or on_meta():
        field = "model.config: it" if path is None else f"model.path: {path}"
        with reading(f"{field} does not describe a model"):
            model = model_class(config)
        with steady_buffers(model):
            model.to(dtype)
        pack_shapes(model, bits)
    else:
        model, missing = load_language(model_class, path, config, dtype, bits)
        names = {name for name, _ in unique_state(model)} - missing
    # Values of the checkpoint would leak into `generate` wherever ours are None.
    model.generation_config = GenerationConfig()
    return model, names


@contextmanager
def steady_buffers(model: nn.Module) -> Iterator[None]:
    """Inside, the model may be cast or moved: its computed tables move, but keep their type.

    No checkpoint holds these tables, such as the frequencies of rotary positions. Casting them to
    bfloat16 would round the positions.
    """
    tables = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name in module._non_persistent_buffers_set and buffer.is_floating_point()
    ]
    yield
    # The old values in their own type, where the new ones are by now: moved, perhaps rounded.
    for module, name, buffer in tables:
        setattr(module, name, buffer.to(module.get_buffer(name).device))


class Longest(NamedTuple):
    """The most that a row of a task can hold."""

    pictures: int
    prompt: int
    """Tokens of the text before the answer, without pictures and template."""
    answer: int
    """Tokens of the answer."""
    turns: int = 1
    """Turns of a conversation before the answer; 1: a question."""


def num_positions(
    model_class: Any,
    config: Any,
    language: Callable[[Any], nn.Module] = lambda model: model,
) -> int | None:
    """Positions that a model's language part has learned; None if it has no table of them.

    Models with rotary positions read rows of any length; a table ends, and what lies behind its end
    stops a run in the middle with an index error.
    """
    text = config.get_text_config()
    most: int | None = getattr(text, "max_position_embeddings", None)
    if most is None or getattr(text, "rope_parameters", None):
        return None
    # The config does not say whether there is a table; the model's modules do, and as shapes they
    # cost no memory.
    with torch.device("meta"), unpartitioned(), bounded():
        part = language(model_class(config))
    tables = [path for path, m in part.named_modules() if isinstance(m, nn.Embedding)]
    names = [path.rpartition(".")[2] for path in tables]
    return most if any(map(holds_positions, names)) else None


def holds_positions(name: str) -> bool:
    """True if a table of this name holds learned positions: embed_positions, position_embeddings,
    pos_embed; GPT-2 calls it wpe."""
    return "pos" in name or name == "wpe"


def check_fits(task: str, tokens: Mapping[str, int], most: int, *fields: str) -> None:
    """Compare a row's tokens, by where they come from, with the positions that there are. `fields`
    of the model can make rows shorter, as those of the task can.

    Errors: ValueError that names the task's longest row and the numbers.
    """
    if (total := sum(tokens.values())) > most:
        terms = " + ".join(f"{number} ({where})" for where, number in tokens.items() if number)
        cure = ", ".join([*fields, f"{task}.max_prompt_tokens", "max_target_tokens"])
        raise ValueError(
            f"{task}: its longest row has {total} tokens: {terms}; the model has learned {most} "
            f"positions; lower {cure} or decoding.max_new_tokens"
        )
