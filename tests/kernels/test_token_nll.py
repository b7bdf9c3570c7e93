"""The negative log-likelihood of tokens, compared with torch's cross-entropy."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vlds.models.kernels.fused import CHUNK, TokenNLL


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
