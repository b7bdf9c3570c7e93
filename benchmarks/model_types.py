"""Which types of image-text models vlds opens, by their shapes: makes docs/types.md.

    python benchmarks/model_types.py > docs/types.md

What is said of tested types is what their tests take their cases from.

Each type that Hugging Face's `AutoModelForImageTextToText` maps is built with its default config,
without weights. Its parts must be separate modules, and methods need layers with roles.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
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

Which types of the hub's models [`ImageTextToText`](models.md) opens. This asks for three of them,
and builds these without weights:

```sh
python - qwen2_5_vl aria fuyu <<END
import sys, torch
from transformers import AutoConfig, AutoModelForImageTextToText
from vlds.models.kinds.image_text import TESTED, find_parts
for name in sys.argv[1:]:
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(name))
    try:
        parts = find_parts(model)
        print(name, "tested" if name in TESTED else "opens", parts.language, parts.vision)
    except ValueError as error:
        print(str(error).partition(";")[0])
END
```

```text
qwen2_5_vl tested model.language_model model.visual
aria opens model.language_model model.vision_tower
fuyu: models of this type have no separate vision encoder
```

Each line ends with the names of language model and vision tower. Of the {total} types that
`AutoModelForImageTextToText` of transformers 5.24 maps, {tested} are tested, {opens} more open
by the same rules, {refused} are refused before training, and of {unknown} nothing is known.
`python benchmarks/model_types.py` makes this page: it builds each type with its default config, or
that of its tests. Whether a processor fits shows only with its files: a run reads two small
pictures before its first step.

## Tested types

{tested_types}.

Of each, a tiny model with random weights and its own class of processor gives Hugging Face's losses
and greedy answers, for unlike rows in one batch. Tests also show, of all types but the named ones:

| | what tests show | types without |
|---|---|---|
{claims}

## Types that open

{opening_types}.

## Roles of layers

Methods find these layers in the language model and in the vision tower of each type that opens,
tested or not: `{usual}`; in some vision towers `qkv` instead of `q k v`. Other types have:

| type | language model | vision tower |
|---|---|---|
{roles}

Where a language model lacks `q k v`, `roles` must name its attention.

## Refused, and unknown

| state | types |
|---|---|
{others}"""
SHOWN = {
    "several pictures": "rows with two pictures beside others",
    "text alone": "rows without a picture beside others",
    "talks": "conversations with pictures in place have the processor's tokens, and answers alone "
    "are learned; other types are tested without a chat template",
    "`pack`": "rows beside each other in one line are the rows alone",
    "LoRA in peft": "`peft` opens the folder with equal logits",
    "connector in peft": "so it does with a trained connector",
    "merged": "`AutoModelForImageTextToText` opens the folder with equal logits",
    "ZeRO-3": "two ranks with unlike rows, one of text alone where the type takes that, compute "
    "what one rank computes",
    "resumed": "steps behind a state that is put back are, bit for bit, those of a run without a "
    "break",
}
"""What the tests show that a claim is named after."""
BASIC = ("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_out", "ffn_in", "ffn_out")
"""Roles that the page lists; `q` stands for attn_q."""
USUAL = "q k v out ffn in ffn out"
USUAL_JOINED = "qkv out ffn in ffn out"
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
        except Exception:  # each type has its own kinds of errors
            yield model_type, "unknown: its default config makes no model", "", ""
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
        yield model_type, state, short(language), short(vision)


def short(roles: list[str]) -> str:
    """Roles without the words that all have."""
    return " ".join(role.removeprefix("attn_").replace("ffn_", "ffn ") for role in roles)


def tiny(model_type: str) -> Any:
    """The config of a tested type's tiny model."""
    return config(model_type, tokenizer(model_type))


def claims(tested: Sequence[str]) -> str:
    """What tests show, and of which tested types they do not."""
    lines = []
    for claim, types in CLAIMS.items():
        without = [each for each in tested if each not in types]
        # Few types pack: those are fewer words than the others.
        exceptions = (
            f"all but {names(types)}" if len(without) > len(types) else names(without) or "none"
        )
        lines.append(f"| {claim} | {SHOWN[claim]} | {exceptions} |")
    return "\n".join(lines)


def names(types: Iterable[str]) -> str:
    return ", ".join(f"`{each}`" for each in sorted(types))


def filled(text: str) -> str:
    return textwrap.fill(text, 108, break_long_words=False, break_on_hyphens=False)


def main() -> None:
    found = sorted(rows())
    by_state: dict[str, list[str]] = {}
    for model_type, state, _, _ in found:
        by_state.setdefault(state, []).append(model_type)
    counts = {
        kind: sum(state.partition(":")[0] == kind for _, state, _, _ in found)
        for kind in ("tested", "opens", "refused", "unknown")
    }
    print(
        HEAD.format(
            total=len(found),
            **counts,
            tested_types=filled(names(by_state["tested"])),
            claims=claims(by_state["tested"]),
            opening_types=filled(names(by_state["opens"])),
            usual=USUAL,
            roles="\n".join(
                f"| `{model_type}` | {language} | {vision} |"
                for model_type, state, language, vision in found
                if state in ("tested", "opens")
                and (language != USUAL or vision not in (USUAL, USUAL_JOINED))
            ),
            others="\n".join(
                f"| {state} | {names(types)} |"
                for state, types in sorted(by_state.items())
                if state not in ("tested", "opens")
            ),
        )
    )


if __name__ == "__main__":
    main()
