"""Which types of image-text models vlds opens, by their shapes: makes docs/types.md.

    python benchmarks/model_types.py > docs/types.md

What is said of tested types is what their tests take their cases from.

Each type that Hugging Face's `AutoModelForImageTextToText` maps is built with its default config,
without weights. Its parts must be separate modules, and methods need layers with roles.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from vlds.models.kinds.image_text import TESTED, find_parts
from vlds.models.loading.gate import unpartitioned
from vlds.models.roles import find_roles

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.toys.image_text.claims import CLAIMS
from tests.toys.image_text.configs import config
from tests.toys.image_text.words import tokenizer

HEAD = """\
# Types of image-text models

Of the {total} types that `AutoModelForImageTextToText` of transformers 5.24 maps, {tested} are
tested, {opened} more open by the same rules, {refused} are refused before training, and of
{unknown} nothing is known. `python benchmarks/model_types.py` makes this page: it builds each type
with its default config, or that of its tests, and without weights. Whether a processor fits shows
only with its files: a run reads two small pictures before its first step.

## Tested types

Of each, a tiny model with random weights and its own class of processor gives Hugging Face's losses
and greedy answers, for unlike rows in one batch. Tests also show:

- **several pictures**, **text alone**: rows with two pictures, and with none, beside others;
- **talks**: conversations with pictures in place have the tokens of the processor, and answers
  alone are learned; other types are tested without a chat template;
- **`pack`**: rows beside each other in one line are the rows alone;
- **LoRA in peft**, **connector in peft**: folders that `peft` opens with equal logits, without and
  with a trained connector; **merged**: those that `AutoModelForImageTextToText` opens likewise;
- **ZeRO-3**: two ranks with unlike rows, one of text alone where the type takes that, compute what
  one rank computes; **resumed**: steps behind a state that is put back are, bit for bit, those of a
  run without a break.

{table}

## Other types

| type | state | roles of the language model | roles of the vision tower |
|---|---|---|---|"""
BASIC = ("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_out", "ffn_in", "ffn_out")
"""Roles that the page lists; `q` stands for attn_q."""
NEEDED = ({"attn_q", "attn_k", "attn_v"}, {"attn_qkv"})
"""Roles of a language model to which LoRA's default goes, or their stand-in."""
MOST = 90
"""Characters of a reason."""


def rows() -> Iterator[tuple[str, str, str, str]]:
    """Type, state, and the roles of both parts."""
    for config_class, model_class in AutoModelForImageTextToText._model_mapping.items():
        model_type = config_class.model_type
        try:
            tried = tiny(model_type) if model_type in TESTED else config_class()
            with torch.device("meta"), unpartitioned():
                model = model_class(tried)
        except Exception as error:  # each type has its own kinds of errors
            reason = str(error).partition("\n")[0].replace("|", "/")
            yield model_type, f"unknown: no default config ({reason:.{MOST}})", "", ""
            continue
        try:
            parts = find_parts(model)
        except (ValueError, AttributeError, NotImplementedError) as error:
            reason = str(error).removeprefix(f"{model_type}: ").partition(";")[0]
            yield model_type, f"refused: {reason:.{MOST}}", "", ""
            continue
        language, vision = (
            [role for role in BASIC if role in find_roles(model.get_submodule(path)).paths]
            for path in (parts.language, parts.vision)
        )
        state = "tested" if model_type in TESTED else "opens"
        if state == "opens" and not any(needed <= set(language) for needed in NEEDED):
            state = "opens; `roles` must name its attention"
        yield model_type, state, short(language), short(vision)


def short(roles: list[str]) -> str:
    """Roles without the words that all have."""
    return " ".join(role.removeprefix("attn_").replace("ffn_", "ffn ") for role in roles)


def tiny(model_type: str) -> Any:
    """The config of a tested type's tiny model."""
    return config(model_type, tokenizer(model_type))


def table(found: Sequence[tuple[str, str, str, str]]) -> str:
    """The tested types and what tests show of them."""
    heads = ["type", *CLAIMS, "language roles", "vision roles"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for model_type, state, *roles in found:
        if state == "tested":
            marks = ["yes" if model_type in types else "" for types in CLAIMS.values()]
            lines.append(f"| {' | '.join([f'`{model_type}`', *marks, *roles])} |")
    return "\n".join(lines)


def main() -> None:
    found = sorted(rows())
    states = [state for _, state, *_ in found]
    print(
        HEAD.format(
            total=len(found),
            tested=states.count("tested"),
            opened=sum(state.startswith("opens") for state in states),
            refused=sum(state.startswith("refused") for state in states),
            table=table(found),
            unknown=sum(state.startswith("unknown") for state in states),
        )
    )
    for model_type, state, language, vision in found:
        if state == "tested":
            continue
        print(f"| `{model_type}` | {state} | {language} | {vision} |")


if __name__ == "__main__":
    main()
