"""Linear layers of weights that DeepSpeed really partitions over two ranks."""

from __future__ import annotations

from typing import NamedTuple

import deepspeed
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.toys.rank_pool import RankPool
from vlds.models.kernels.fused import TORCH_LINEAR, linear, partitioned_linear
from vlds.runtime.deepspeed_start import start_ranks


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


def test_only_weights_that_are_gathered() -> None:
    layer = nn.Linear(6, 4)
    with partitioned_linear():
        assert F.linear is linear
        function = layer(torch.randn(3, 6)).grad_fn
    assert F.linear is TORCH_LINEAR
    assert type(function).__name__ == "AddmmBackward0"
