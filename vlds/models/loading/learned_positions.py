"""Rows of text that are longer than the table of positions that a language model has learned.

Models with rotary positions read rows of any length; a table ends, and what lies behind its end
stops a run in the middle with an index error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from vlds.pretrained.weights import bounded, unpartitioned


class Longest(NamedTuple):
    """The most that a row of a task can hold."""

    pictures: int
    prompt: int
    """Tokens of the text before the answer, without pictures and template."""
    answer: int
    """Tokens of the answer."""


def num_positions(
    model_class: Any,
    config: Any,
    language: Callable[[Any], nn.Module] = lambda model: model,
) -> int | None:
    """Positions that a model's language part has learned; None if it has no table of them. The
    shapes of the model tell, which costs no memory."""
    text = config.get_text_config()
    most: int | None = getattr(text, "max_position_embeddings", None)
    if most is None or getattr(text, "rope_parameters", None):
        return None
    with torch.device("meta"), unpartitioned(), bounded():
        part = language(model_class(config))
    tables = (name for name, module in part.named_modules() if isinstance(module, nn.Embedding))
    return most if any(map(is_positions, tables)) else None


def is_positions(path: str) -> bool:
    """True for the path of a table of positions, such as OPT's and GPT-2's."""
    name = path.rpartition(".")[2]
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
