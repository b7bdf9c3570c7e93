"""Attention for CPUs, under Hugging Face's name for it: plain products with the softmax in float32.

The backward pass of torch's fused attention takes longer on a CPU than all the rest of a small
model, and Hugging Face's "eager" attention takes the softmax in bfloat16, with which small models
learn visibly worse. (The original code has the softmax in float32, too.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

CPU_ATTENTION = "vlds_cpu"


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
) -> tuple[Tensor, Tensor]:
    """(b, heads, l, d) queries over (b, heads, s, d) keys -> (b, l, heads, d) and the weights."""
    scores = torch.matmul(query, key.transpose(2, 3))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if scale != 1.0:  # T5 has none
        scores = scores * scale
    for term in (position_bias, attention_mask):
        scores = scores if term is None else scores + term
    precise = torch.promote_types(scores.dtype, torch.float32)
    weights = F.softmax(scores, dim=-1, dtype=precise).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


AttentionInterface.register(CPU_ATTENTION, cpu_attention)
AttentionMaskInterface.register(CPU_ATTENTION, eager_mask)
