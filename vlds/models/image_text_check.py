"""Whether a processor belongs to an image-text model, and vlds can place what it gives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from vlds.backbones.vocabulary import num_ids
from vlds.models.image_text_collate import GREY, ImageTextCollator
from vlds.models.model import Model
from vlds.runtime.manifest import lacks_memory
from vlds.schema import Example, Row

TESTED = (
    "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm", "idefics3", "llava", "llava_onevision",
    "paligemma", "gemma3", "internvl", "florence2",
)  # fmt: skip
"""Types of models that vlds has tests for."""
SIZES = ("patch_size", "merge_size", "temporal_patch_size", "image_seq_length", "image_seq_len")
"""What processors divide by, and how many placeholders they write."""
LARGEST_SIZE = 65_536
CURE = f"choose another type of model (tested: {', '.join(TESTED)})"


def check_vocabulary(processor: Any, num_rows: int, field: str) -> None:
    """Errors: ValueError if the tokenizer has ids beyond the rows of the model's table."""
    if (ids := num_ids(processor.tokenizer)) > num_rows:
        raise ValueError(
            f"{field}: its tokenizer has ids up to {ids - 1}, and the model {num_rows} tokens; "
            "name the processor that belongs to it"
        )


def check_sizes(processor: Any, field: str) -> None:
    """Errors: ValueError for sizes with which a processor would divide by zero, or write as many
    placeholders as fill the memory."""
    for owner in (processor, getattr(processor, "image_processor", None)):
        for name in SIZES:
            value = getattr(owner, name, None)
            if value is not None and (type(value) is not int or not 1 <= value <= LARGEST_SIZE):
                raise ValueError(
                    f"{field}: {type(owner).__name__}'s {name} is {value!r:.50}, a whole number "
                    f"from 1 to {LARGEST_SIZE:,} expected; correct its file, or copy it again"
                )


def check_inputs(collator: ImageTextCollator, config: Any, model: str, processor: str) -> None:
    """Try a processor on a small picture; `model` and `processor` are the fields that name these.

    Errors: ValueError if it fails; if it writes no placeholder that the model looks for; or if it
    gives something beside the tokens that grows with the text, which an answer would have to
    continue.
    """
    check_sizes(collator.processor, processor)
    kind, name = collator.model_type, type(collator.processor).__name__
    try:
        short = collator.dummy()
        long = short if kind in TESTED else collator.dummy("what is this ?")
    except Exception as error:  # each processor has errors of its own
        raise ValueError(
            f"{processor}: {name} cannot read a small picture for a {kind} model: {error}; name "
            f"the processor that belongs to the model, or {CURE}"
        ) from error
    sought = getattr(config, "image_token_id", getattr(config, "image_token_index", None))
    if sought is not None and sought not in short.prompt.tolist():
        raise ValueError(
            f"{processor}: {name} does not write token {sought}, where the {kind} model looks for "
            "a picture; name the processor that belongs to it"
        )
    for name, values in short.media.items():
        if not values.isfinite().all():
            raise ValueError(
                f"{processor}: the processor makes numbers that are NaN or infinite of a small "
                f"picture ('{name}'); correct mean, deviation and factor in its files"
            )
        if values.shape[1:] != long.media[name].shape[1:]:
            raise ValueError(
                f"{model}: the processor of {kind} gives '{name}' for each token of a prompt, "
                f"which vlds cannot continue over an answer; {CURE}"
            )


def check_reads(model: Model, collator: ImageTextCollator, processor: str) -> None:
    """Let a model read a small picture as its processor gives it; `processor` is the field that
    names this. Collective.

    Errors: ValueError if the model fails.
    """
    example = Example("a", "", "what is this ?", "this")
    if 0 in model.heads.numbers.values():
        example = replace(example, target="", class_scores={})
    row = Row(example, 0, 20, 10, range(1))
    batch = collator([row], [GREY], evaluation=False)
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval().loss_sums(batch.to(next(model.parameters()).device))
    except (ValueError, RuntimeError, TypeError, LookupError) as error:
        if lacks_memory(error):
            raise
        raise ValueError(
            f"{processor}: the model cannot read a small picture as "
            f"{type(collator.processor).__name__} gives it: {error}; name the processor that "
            "belongs to the model"
        ) from error
    finally:
        model.train(was_training)
