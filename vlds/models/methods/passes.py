"""What methods need of each pass of a model that the user built, whose own forward pass runs.

A model of vlds calls `run_beside` before its encoder, tells methods which rows run, and puts
prompts before the text. Here, forward hooks on the model's stacks do so: the encoder and decoder of
an encoder-decoder, or the one stack of another model. They are the innermost modules that Hugging
Face calls by themselves, also in `generate`, which runs the encoder once and the decoder for each
token. Shapes: b rows, p prompts, l tokens, d wide.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from vlds.models.backbones.attention import CPU_ATTENTION, EXTENDED_ATTENTION
from vlds.models.backbones.t5 import T5
from vlds.models.methods.context import BatchContext
from vlds.models.methods.host import ADDED, run_beside


class Passes:
    """Lets the methods of a model run in each of its passes, until `remove`."""

    def __init__(self, model: nn.Module, context: BatchContext) -> None:
        """Errors: ValueError for an attention that sees no added keys."""
        beside = getattr(model, ADDED[0], None)
        # A tower without methods is left alone, unless all of them stand beside the model.
        stacks = [s for s in stacks_of(model) if holds_methods(s)] or stacks_of(model)
        self.attentions = [(s, see_added_keys(s)) for s in stacks if adds_keys(s)]
        """Stack -> the attention function that it had."""
        self.handles: list[RemovableHandle] = []
        for stack in stacks if beside or any(map(holds_methods, stacks)) else ():
            around = AroundStack(model, context)
            self.handles += [
                stack.register_forward_pre_hook(around.begin, with_kwargs=True),
                stack.register_forward_hook(around.end),
            ]

    def remove(self) -> None:
        """Leave the stacks as they were."""
        for handle in self.handles:
            handle.remove()
        for stack, name in self.attentions:
            stack.set_attn_implementation(name)


class AroundStack:
    """What happens before and behind a stack. Its methods are the hooks: a copy of the model gets a
    copy of this object, with that model and its context."""

    def __init__(self, model: nn.Module, context: BatchContext) -> None:
        self.model: Any = model
        self.context = context
        self.dropped = 0
        """Prompts whose states the running pass drops behind the stack."""

    def begin(
        self, stack: nn.Module, args: tuple[Any, ...], given: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the stack's forward pass, with prompts before the text."""
        context = self.context
        # One row of one task: modules repeat it for as many rows as run.
        row = torch.zeros(1, dtype=torch.long)
        context.set_rows(row, row, next(self.model.parameters()).device)
        context.training = stack.training
        context.another_pass()
        prompts, self.dropped = run_beside(self.model), 0
        if args:
            named = signature(stack.forward).bind(*args, **given).arguments
            given = {**named.pop("kwargs", {}), **named}
        if given.get("encoder_hidden_states") is not None:
            if prompts is not None:
                given = given | beside_encoder(given, prompts.shape[1])
            return (), given
        if is_continued(given):
            return (), given if prompts is None else given | behind_cached(given, prompts.shape[1])
        if prompts is not None:
            given = given | with_prompts(stack, given, prompts)
            # A decoder reads the prompts' states too; a language model's are those of the text.
            has_decoder = self.model.config.is_encoder_decoder
            self.dropped = 0 if has_decoder else prompts.shape[1]
        context.token_mask = real_tokens(given)
        return (), given

    def end(self, stack: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """The stack's output without the states of prompts."""
        if not self.dropped:
            return output
        if isinstance(output, tuple):
            return output[0][:, self.dropped :], *output[1:]
        output.last_hidden_state = output.last_hidden_state[:, self.dropped :]
        return output


def stacks_of(model: nn.Module) -> list[Any]:
    """The innermost models of Hugging Face inside a model; the model itself if there are none."""
    models = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    inner = [
        module
        for module in models
        if not any(isinstance(other, PreTrainedModel) for other in list(module.modules())[1:])
    ]
    return inner or [model]


def holds_methods(stack: nn.Module) -> bool:
    """True if methods have put something into a stack."""
    return any(getattr(module, child, None) for module in stack.modules() for child in ADDED)


def adds_keys(stack: nn.Module) -> bool:
    """True if methods put keys and values before those of a stack's attentions."""
    return any(getattr(module, "key_value_extensions", None) for module in stack.modules())


def see_added_keys(stack: Any) -> str:
    """Let a stack's attention see the keys and values that methods add; the name that it had.

    Errors: ValueError for a stack whose attention has no name, or another function.
    """
    usual = getattr(getattr(stack, "config", None), "_attn_implementation", None)
    if usual not in ("sdpa", CPU_ATTENTION, EXTENDED_ATTENTION):
        raise ValueError(
            f"it puts keys and values into attention layers, and those of {type(stack).__name__} "
            f"run {usual or 'their own code'}, which sees none: load the model with "
            "attn_implementation='sdpa', or use LoRA or Adapter"
        )
    if usual == "sdpa":
        stack.set_attn_implementation(EXTENDED_ATTENTION)
    return str(usual)


def takes_prompts(model: Any) -> bool:
    """True if prompts can stand before the text of a model: of T5, whose positions are relative,
    and of a causal language model."""
    if isinstance(model, T5.model_class):
        return True
    return (
        isinstance(model, PreTrainedModel)
        and model.can_generate()
        and not model.config.is_encoder_decoder
        # Of a model that reads pictures, the text has a configuration of its own.
        and model.config.get_text_config() is model.config
    )


def is_continued(given: Mapping[str, Any]) -> bool:
    """True if a pass goes on behind keys and values of an earlier one, as those of `generate`."""
    cache = given.get("cache", given.get("past_key_values"))
    return cache is not None and cache.get_seq_length() > 0


def with_prompts(stack: Any, given: Mapping[str, Any], prompts: Tensor) -> dict[str, Any]:
    """The arguments that change if prompts (b or 1, p, d) stand before the text.

    Errors: ValueError for a mask that is not (b, l).
    """
    embeds, mask = given.get("inputs_embeds"), mask_of(given)
    if embeds is None:
        embeds = stack.get_input_embeddings()(given["input_ids"])
    count = prompts.shape[1]
    joined = torch.cat([prompts.to(embeds).expand(len(embeds), -1, -1), embeds], 1)
    changed: dict[str, Any] = {"input_ids": None, "inputs_embeds": joined}
    if mask is not None:
        changed["attention_mask"] = F.pad(mask, (count, 0), value=1)
    if (positions := given.get("position_ids")) is not None:
        before = torch.arange(count, device=positions.device).expand(len(positions), -1)
        changed["position_ids"] = torch.cat([before, positions + count], 1)
    return changed


def behind_cached(given: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The arguments that change behind a cache with the keys of `count` prompts, of which
    `generate` does not know.

    Errors: ValueError for a mask that is not (b, l).
    """
    mask, positions = mask_of(given), given.get("position_ids")
    changed: dict[str, Any] = {}
    if mask is not None:
        changed["attention_mask"] = F.pad(mask, (count, 0), value=1)
    if positions is not None:
        changed["position_ids"] = positions + count
    return changed


def beside_encoder(given: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The decoder's arguments that change if `count` prompts stand before the encoder's text."""
    states, mask = given["encoder_hidden_states"], given.get("encoder_attention_mask")
    if mask is None or mask.shape[1] == states.shape[1]:
        return {}
    return {"encoder_attention_mask": F.pad(mask, (count, 0), value=1)}


def mask_of(given: Mapping[str, Any]) -> Tensor | None:
    """(b, l) the mask of a pass; None if it has none."""
    mask = given.get("attention_mask")
    if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2):
        raise ValueError(
            "attention_mask: prompts stand before the text, whose mask has another shape than "
            "(rows, tokens); give such a one, or none"
        )
    return mask


def real_tokens(given: Mapping[str, Any]) -> Tensor | None:
    """(b, l) bool: which tokens of a pass are real; None for what has none, such as pictures."""
    mask = given.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return mask.bool()
    read = given.get("inputs_embeds", given.get("input_ids"))
    if read is None:
        read = given.get("input_ids")
    return (
        None if read is None else torch.ones(read.shape[:2], dtype=torch.bool, device=read.device)
    )
