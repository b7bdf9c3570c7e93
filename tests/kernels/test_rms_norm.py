"""Norms that train some rows at a time, compared with Hugging Face's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from vlds.models.kernels.fused import fast_norms, is_rms_norm
from vlds.models.methods.host import extended

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


def test_a_norm_that_a_method_extends() -> None:
    """Its class is one of ours, behind Hugging Face's."""
    norm = T5LayerNorm(8).bfloat16()
    inputs = torch.randn(2, 8, dtype=torch.bfloat16, requires_grad=True)
    expected = norm(inputs)
    extended(norm)
    with fast_norms(nn.ModuleList([norm])):
        output = norm(inputs)
    assert type(norm) is not T5LayerNorm
    assert type(output.grad_fn).__name__ == "RMSNormBackward"
    assert torch.equal(output, expected)


@pytest.mark.parametrize("reason", ["outside", "float32", "no gradient", "weights in float32"])
def test_all_else_is_hugging_faces(reason: str) -> None:
    norm = T5LayerNorm(8).bfloat16()
    inputs = torch.randn(2, 8, dtype=torch.bfloat16, requires_grad=True)
    if reason in ("float32", "weights in float32"):
        norm = norm.float()
    if reason == "float32":
        inputs = inputs.float()
    model = nn.ModuleList([] if reason == "outside" else [norm])
    with fast_norms(model), torch.set_grad_enabled(reason != "no gradient"):
        output = norm(inputs)
    assert "RMSNorm" not in type(output.grad_fn).__name__
    assert torch.equal(output, norm(inputs))


def test_what_computes_something_else_is_left_alone() -> None:
    """Gemma's norm adds 1 to its weight; torch's has another name for its epsilon."""
    assert all(map(is_rms_norm, SAME))
    assert not any(map(is_rms_norm, (GemmaRMSNorm, nn.RMSNorm, nn.LayerNorm, nn.Linear)))


def test_the_class_has_its_own_forward_pass_again() -> None:
    own = T5LayerNorm.forward
    with fast_norms(nn.ModuleList([T5LayerNorm(8)])):
        assert T5LayerNorm.forward is not own
    assert T5LayerNorm.forward is own
