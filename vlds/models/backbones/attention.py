"""Attention functions under Hugging Face's names for them.

`vlds_cpu` is plain products with the softmax in float32. The backward pass of torch's fused
attention takes longer on a CPU than all the rest of a small model, and Hugging Face's "eager"
attention takes the softmax in bfloat16, with which small models learn visibly worse. (The original
code has the softmax in float32, too.) `vlds_extended` is torch's fused attention. Both read the
keys and values that methods add, and let the beams of an example share the encoder's states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from vlds.models.kernels.attention import recomputed_attention, trains
from vlds.models.kernels.dropout import draws_by_example, keys_stand_before

CPU_ATTENTION = "vlds_cpu"
EXTENDED_ATTENTION = "vlds_extended"


def cpu_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """(b, heads, l, d) queries over (b, heads, s, d) keys -> (b, l, heads, d) and the weights,
    which a training step does not keep."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    added = [term for term in (position_bias, attention_mask) if term is not None]
    dropout = dropout if module.training else 0.0
    if trains(query, key, value) and not any(term.requires_grad for term in added):
        shape = torch.Size((*query.shape[:3], key.shape[2]))
        draws = draws_by_example(shape, dropout) if dropout else None
        if draws is not None or not dropout:
            return recomputed_attention(query, key, value, scale, draws, added), None
    scores = torch.matmul(query, key.transpose(2, 3))
    if scale != 1.0:  # T5 has none
        scores = scores * scale
    for term in added:
        scores = scores + term
    precise = torch.promote_types(scores.dtype, torch.float32)
    weights = F.softmax(scores, dim=-1, dtype=precise).to(query.dtype)
    # `dropout` is 0 in evaluation, so that F.dropout's own default, to train, does no harm.
    weights = F.dropout(weights, p=dropout)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def with_extensions(attend: Callable[..., Any]) -> Callable[..., Any]:
    """The attention function, which also reads the keys and values that methods add, and lets the
    beams of an example share their keys: queries (num * k, heads, l, d) over (num, heads, s, d)."""

    def attention(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        position_bias: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        length = key.shape[2]
        for extension in getattr(module, "key_value_extensions", {}).values():
            key, value = extension(key, value)
        added = key.shape[2] - length
        keys_stand_before(added)
        terms = [attention_mask, position_bias]
        if added:  # every query sees the added keys: 0 for the mask, and for a relative position
            terms = [None if term is None else F.pad(term, (added, 0)) for term in terms]
        mask, bias = terms
        folded = query
        if len(query) != len(key):
            # Beams stand beside each other as k queries of one example: (num, heads, k, d). None
            # of them is masked, so their order among the queries does not matter.
            assert query.shape[2] == 1, "beams write one token at a time"
            folded = query.unflatten(0, (len(key), -1)).transpose(1, 2).flatten(2, 3)
        outputs, weights = attend(module, folded, key, value, mask, position_bias=bias, **kwargs)
        return outputs.reshape(len(query), -1, *outputs.shape[2:]), weights

    return attention


def set_attention(model: Any, name: str) -> None:
    """Use an attention function in all layers of a model.

    Errors: ValueError if some layers keep another one. T5's do in transformers below 5.20: prefixes
    would have no effect there, and beams would not share states.
    """
    model.set_attn_implementation(name)
    stacks = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    if any(stack.config._attn_implementation != name for stack in stacks):
        raise ValueError(
            f"transformers {transformers.__version__} does not let all layers of "
            f"{type(model).__name__} use another attention function; install transformers>=5.20,<6"
        )


def attend_as_on_gpus(model: nn.Module) -> None:
    """Let a model that was built on a CPU use torch's fused attention, as it would on a GPU."""
    for module in model.modules():
        if (
            isinstance(module, PreTrainedModel)
            and module.config._attn_implementation == CPU_ATTENTION
        ):
            set_attention(module, EXTENDED_ATTENTION)


def use_extensions(model: Any) -> None:
    """Let attention see the keys and values that methods have added, if any have.

    Errors: ValueError if the model computes its attention in a way that sees none.
    """
    names = [n for m in model.modules() for n in getattr(m, "key_value_extensions", ())]
    if not names:
        return
    # On a GPU the model has torch's fused attention, which sees no added keys under its own name.
    if (usual := model.config._attn_implementation) == "sdpa":
        model.set_attn_implementation(EXTENDED_ATTENTION)
    if model.config._attn_implementation not in (CPU_ATTENTION, EXTENDED_ATTENTION):
        raise ValueError(
            f"methods.{names[0]}: puts keys and values into attention layers, and "
            f"{type(model).__name__} computes these by itself ({usual}); leave them out "
            "(HyperPELT's prefix_length: 0), or use LoRA or Adapter"
        )


@contextmanager
def beams_share_states(models: Sequence[Any], num_beams: int) -> Iterator[None]:
    """Inside, decoders may read the encoder's states of an example once for all its beams."""
    before = [(model, model.config._attn_implementation) for model in models]
    ours = (CPU_ATTENTION, EXTENDED_ATTENTION)
    others = [(m, name) for m, name in before if num_beams > 1 and name not in ours]
    for model, _ in others:
        set_attention(model, EXTENDED_ATTENTION)
    try:
        yield
    finally:
        for model, name in others:
            set_attention(model, name)


AttentionInterface.register(CPU_ATTENTION, with_extensions(cpu_attention))
AttentionMaskInterface.register(CPU_ATTENTION, eager_mask)
AttentionInterface.register(EXTENDED_ATTENTION, with_extensions(AttentionInterface()["sdpa"]))
AttentionMaskInterface.register(EXTENDED_ATTENTION, eager_mask)
