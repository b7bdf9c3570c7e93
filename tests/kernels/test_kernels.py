"""Norms, linear layers and losses beside torch's and Hugging Face's."""

from __future__ import annotations

from typing import NamedTuple

import deepspeed
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from tests.toys.rank_pool import RankPool
from vlds.models.kernels.fused import (
    CHUNK,
    TORCH_LINEAR,
    TokenNLL,
    fast_norms,
    is_rms_norm,
    linear,
)
from vlds.runtime.deepspeed_start import start_ranks

# Norms that train some rows at a time, compared with Hugging Face's own.

SAME = (T5LayerNorm, LlamaRMSNorm, Qwen2RMSNorm)


def gradients(norm: nn.Module, inputs: Tensor, over: Tensor) -> list[Tensor]:
    """The output, and the gradients of input and weight."""
    inputs = inputs.detach().requires_grad_()
    output = norm(inputs)
    return [output, *torch.autograd.grad(output, (inputs, *norm.parameters()), over)]


@pytest.mark.parametrize("kind", SAME)
def test_same_output_and_gradients_as_exact_ones(kind: type[nn.Module]) -> None:
    """The output is the same bits; gradients are as near to exact ones as Hugging Face's."""
    torch.manual_seed(0)
    norm, exact = kind(1024), kind(1024)  # type: ignore[call-arg]
    nn.init.uniform_(next(norm.bfloat16().parameters()), 0.5, 1.5)
    exact.load_state_dict(norm.state_dict())
    inputs = 3 * torch.randn(7, 300, 1024, dtype=torch.bfloat16)  # more than one chunk
    over = torch.randn_like(inputs)
    usual = gradients(norm, inputs, over)
    with fast_norms(nn.ModuleList([norm])):
        found = gradients(norm, inputs, over)
    expected = gradients(exact, inputs.float(), over.float())

    assert type(found[0].grad_fn).__name__ == "RMSNormBackward"
    assert torch.equal(found[0], usual[0])
    for ours, theirs, right in zip(found[1:], usual[1:], expected[1:], strict=True):
        distances = [float((x.float() - right).norm() / right.norm()) for x in (ours, theirs)]
        assert distances[0] < max(1.05 * distances[1], 1e-3)


def test_what_computes_something_else_is_left_alone() -> None:
    """Gemma's norm adds 1 to its weight; torch's has another name for its epsilon."""
    assert all(map(is_rms_norm, SAME))
    assert not any(map(is_rms_norm, (GemmaRMSNorm, nn.RMSNorm, nn.LayerNorm, nn.Linear)))


# Linear layers of weights that DeepSpeed really partitions over two ranks.


class Found(NamedTuple):
    """What a rank has computed, beside torch's numbers of whole weights."""

    output: Tensor
    gradients: list[Tensor]
    kept: list[bool]
    """Which tensors wait for the backward pass."""
    torchs_output: Tensor
    torchs_gradients: list[Tensor]
    is_partitioned: bool
    """After the backward pass."""


def compute(frozen: bool, bias: bool, trained_bias: bool) -> Found:
    start_ranks(60)
    torch.manual_seed(0)
    layer = nn.Linear(6, 4, bias=bias)
    whole = [weight.detach().clone() for weight in layer.parameters()]
    layer.weight.requires_grad_(not frozen)
    if bias:
        layer.bias.requires_grad_(trained_bias)
    inputs = torch.randn(3, 5, 6, requires_grad=True)
    over = torch.randn(3, 5, 4)
    deepspeed.zero.Init(module=layer, dtype=torch.float32)
    with deepspeed.zero.GatheredParameters(list(layer.parameters())):
        output = linear(inputs, layer.weight, layer.bias)
    assert layer.weight.numel() == 0
    function = output.grad_fn
    assert function is not None
    kept = [tensor is not None for tensor in function.saved_tensors]  # type: ignore[attr-defined]
    # A weight that trains is gathered, as DeepSpeed's hooks do, to take its gradient.
    with deepspeed.zero.GatheredParameters([] if frozen else [layer.weight]):
        output.backward(over)
    weights = [layer.weight, *([layer.bias] if bias else [])]
    gradients = [x.grad for x in (inputs, *weights) if x.grad is not None]

    own = [w.requires_grad_(p.requires_grad) for w, p in zip(whole, weights, strict=True)]
    expected = TORCH_LINEAR(inputs, *own)
    wanted = [x for x in (inputs, *own) if x.requires_grad]
    partitioned = layer.weight.ds_status.name == "NOT_AVAILABLE"
    torchs = list(torch.autograd.grad(expected, wanted, over))
    return Found(output.detach(), gradients, kept, expected.detach(), torchs, partitioned)


@pytest.mark.parametrize(
    ("frozen", "bias", "trained_bias"),
    [(True, False, False), (True, True, False), (True, True, True), (False, True, True)],
)
def test_same_numbers_as_whole_weights(
    frozen: bool, bias: bool, trained_bias: bool, ranks2: RankPool
) -> None:
    for found in ranks2.run(compute, frozen, bias, trained_bias):
        assert torch.equal(found.output, found.torchs_output)
        assert (
            len(found.gradients) == len(found.torchs_gradients) == 1 + (not frozen) + trained_bias
        )
        for ours, torchs in zip(found.gradients, found.torchs_gradients, strict=True):
            torch.testing.assert_close(ours, torchs)
        assert found.kept == [not frozen], "a frozen layer keeps nothing"
        assert found.is_partitioned


# The negative log-likelihood of tokens, compared with torch's cross-entropy.


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 8e-3)]
)
@pytest.mark.parametrize("num", [0, 1, 75])
def test_value_and_gradient_are_those_of_cross_entropy(
    dtype: torch.dtype, tolerance: float, num: int
) -> None:
    """Over several chunks. A gradient in half precision is torch's, rounded once."""
    torch.manual_seed(0)
    width = 3 * CHUNK // 10
    logits = (5 * torch.randn(num, width)).to(dtype).requires_grad_()
    labels = torch.randint(width, (num,))
    weights = torch.rand(num, dtype=torch.promote_types(dtype, torch.float32))
    found = TokenNLL.apply(logits, labels)
    (gradient,) = torch.autograd.grad((found * weights).sum(), logits)
    precise = logits.detach().to(weights.dtype).requires_grad_()
    expected = F.cross_entropy(precise, labels, reduction="none")
    (right,) = torch.autograd.grad((expected * weights).sum(), precise)

    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=max(tolerance / 1e3, 1e-12))
    assert gradient.dtype == dtype
    near = {"rtol": tolerance, "atol": tolerance / 1e3}
    torch.testing.assert_close(gradient.to(right.dtype), right, **near)


def test_logits_of_infinity_are_left_out() -> None:
    """A masked token has no share."""
    logits = torch.tensor([[0.0, float("-inf"), 0.0]], requires_grad=True)
    found = TokenNLL.apply(logits, torch.tensor([0]))
    found.backward()
    torch.testing.assert_close(found, torch.tensor([2.0]).log())
    torch.testing.assert_close(logits.grad, torch.tensor([[-0.5, 0.0, 0.5]]))
