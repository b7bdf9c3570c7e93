"""The backward pass of short attention on a CPU, compared with torch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vlds.models.kernels.attention import (
    TORCH_ATTENTION,
    attention,
    attention_by,
    recomputed_attention,
)
from vlds.models.kernels.dropout import StepDropout, draws_by_example, dropout_by, examples_follow


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.bfloat16).requires_grad_()


def distance(found: Tensor, exact: Tensor) -> float:
    found, exact = found.detach().float(), exact.detach().float()
    return float((found - exact).norm() / exact.norm())


def masks(num: int, heads: int, length: int) -> dict[str, Tensor | None]:
    seen = torch.rand(num, 1, length, length) < 0.7
    seen[0, 0, 3] = False  # a row that sees nothing
    return {
        "none": None,
        "booleans": seen,
        "one for all": seen[:1, :, 4:5].expand(1, 1, length, length),
        "two dimensions": torch.ones(length, length).tril().bool(),
        "added": torch.randn(num, heads, length, length, dtype=torch.bfloat16),
    }


@pytest.mark.parametrize("key_heads", [6, 2])
@pytest.mark.parametrize("name", ["none", "booleans", "one for all", "two dimensions", "added"])
def test_gradients_are_those_of_exact_attention(name: str, key_heads: int) -> None:
    """Also where several heads read one key, as in Llama."""
    torch.manual_seed(0)
    num, heads, length = 9, 6, 150  # more than one chunk
    query = draw(num, length, heads, 16).transpose(1, 2)
    key, value = (draw(num, length, key_heads, 16).transpose(1, 2) for _ in range(2))
    mask = masks(num, heads, length)[name]
    exact_mask = mask.float() if mask is not None and mask.dtype != torch.bool else mask
    gradient = torch.randn(num, heads, length, 16, dtype=torch.bfloat16)
    how: dict[str, Any] = {"scale": 0.3, "enable_gqa": key_heads < heads}
    with attention_by(attention):
        output = F.scaled_dot_product_attention(query, key, value, mask, **how)
    found = torch.autograd.grad(output, (query, key, value), gradient)
    exact = TORCH_ATTENTION(query.float(), key.float(), value.float(), exact_mask, **how)
    expected = torch.autograd.grad(exact, (query, key, value), gradient.float())
    fused = TORCH_ATTENTION(query, key, value, mask, **how)
    usual = torch.autograd.grad(fused, (query, key, value), gradient)

    assert type(output.grad_fn).__name__ == "ShortAttentionBackward"
    assert distance(output, exact) < 0.005
    for one, other, torchs in zip(found, expected, usual, strict=True):
        assert one.shape == other.shape
        assert distance(one, other) < min(2 * distance(torchs, other), 0.01)


def test_causal_and_uneven_lengths() -> None:
    torch.manual_seed(0)
    query, key, value = draw(2, 2, 5, 8), draw(2, 2, 7, 8), draw(2, 2, 7, 8)
    with attention_by(attention):
        output = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    expected = TORCH_ATTENTION(query, key, value, is_causal=True)

    assert distance(output, expected) < 0.005
    found = torch.autograd.grad(output.sum(), key)[0]
    assert distance(found, torch.autograd.grad(expected.sum(), key)[0]) < 0.01


def plain(query: Tensor, key: Tensor, value: Tensor, added: list[Tensor], p: float) -> Tensor:
    """Attention as the formula says it, whose dropout is that of a layer."""
    scores = query @ key.mT * 0.3
    for term in added:
        scores = scores + term
    return (F.dropout(scores.softmax(-1), p) @ value).transpose(1, 2)


@pytest.mark.parametrize("p", [0.0, 0.4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_recomputed_attention_is_the_formula(p: float, dtype: torch.dtype) -> None:
    """Output and gradients, with a bias for all examples and a mask of each."""
    torch.manual_seed(0)
    num, heads, length = 40, 3, 70  # more than one chunk
    query, key, value = (draw(num, heads, length, 16).to(dtype).detach() for _ in range(3))
    inputs = [x.requires_grad_() for x in (query, key, value)]
    bias = torch.randn(1, heads, length, length, dtype=dtype)
    mask = torch.zeros(num, 1, 1, length, dtype=dtype)
    mask[::2, ..., 60:] = torch.finfo(dtype).min
    gradient = torch.randn(num, length, heads, 16, dtype=dtype)
    with dropout_by(StepDropout(seed=1, step=2)):
        examples_follow([str(row) for row in range(num)])
        torch.manual_seed(3)
        draws = draws_by_example(torch.Size((num, heads, length, length)), p) if p else None
        output = recomputed_attention(query, key, value, 0.3, draws, [bias, mask])
        torch.manual_seed(3)
        expected = plain(query, key, value, [bias, mask], p)
    found = torch.autograd.grad(output, inputs, gradient)
    gradients = torch.autograd.grad(expected, inputs, gradient)

    exact = dtype == torch.float64
    for one, other in zip((output, *found), (expected, *gradients), strict=True):
        assert one.shape == other.shape
        if exact:
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
        else:
            assert distance(one, other) < 0.01


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_dropout_of_weights_follows_the_examples(groups: int) -> None:
    """Whatever rows stand beside an example, causal or with a mask."""
    draw = torch.Generator().manual_seed(0)
    query = torch.randn(6, 4, 5, 8, generator=draw).requires_grad_()
    key, value = (torch.randn(6, groups, 5, 8, generator=draw) for _ in range(2))
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    ids = [str(number) for number in range(6)]

    def outputs(rows: slice, **which: Any) -> Tensor:
        with dropout_by(StepDropout(1, 0)), attention_by(attention):
            examples_follow(ids[rows])
            return F.scaled_dot_product_attention(
                query[rows], key[rows], value[rows], dropout_p=0.5, enable_gqa=True, **which
            )

    whole = outputs(slice(0, 6), is_causal=True)
    assert torch.equal(outputs(slice(0, 6), attn_mask=mask), whole)
    assert torch.allclose(outputs(slice(2, 4), is_causal=True), whole[2:4])
    assert not torch.allclose(
        whole, F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    )
