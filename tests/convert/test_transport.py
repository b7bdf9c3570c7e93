"""Adapters merged by transport of neurons: what they compute, and how far a plain mean is off."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vlds.convert.transport import COSTS, Cost, Neurons, aligned, transport_plan

pytest.importorskip("ot", reason="needs the extra `transport`")
INPUTS, NEURONS = 48, 16


def drawn_neurons(seed: int) -> Neurons:
    """An adapter with random weights."""
    draw = torch.Generator().manual_seed(seed)
    shapes = (NEURONS, INPUTS), (NEURONS,), (INPUTS, NEURONS)
    return Neurons(*(torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes))


def drawn_inputs() -> Tensor:
    """What adapters read."""
    draw = torch.Generator().manual_seed(7)
    return torch.randn(20, INPUTS, generator=draw, dtype=torch.float64)


def in_other_order(neurons: Neurons, seed: int) -> Neurons:
    """A copy whose neurons stand elsewhere."""
    order = torch.randperm(NEURONS, generator=torch.Generator().manual_seed(seed))
    return Neurons(neurons.down[order], neurons.bias[order], neurons.up[:, order])


def mean(*adapters: Neurons) -> Neurons:
    """The plain mean."""
    return Neurons(*(torch.stack(parts).mean(0) for parts in zip(*adapters, strict=True)))


def distance(one: Neurons, other: Neurons) -> float:
    """The largest difference of what two adapters compute."""
    outputs = [
        F.gelu(drawn_inputs() @ neurons.down.T + neurons.bias) @ neurons.up.T
        for neurons in (one, other)
    ]
    return float((outputs[0] - outputs[1]).abs().max())


def merged(first: Neurons, other: Neurons, cost: Cost, share: float | None = None) -> Neurons:
    """The mean after transport."""
    return mean(first, aligned(first, other, cost, drawn_inputs(), share))


BY_COST = pytest.mark.parametrize("cost", COSTS)


def test_a_plan_that_does_not_converge_is_an_error() -> None:
    cost = torch.rand(NEURONS, NEURONS, generator=torch.Generator().manual_seed(0)).double()
    assert (transport_plan(cost, 0.5).sum(0) - 1).abs().max() < 1e-9
    with pytest.raises(ValueError, match="--entropic: got 1e-06; the plan has not converged"):
        transport_plan(cost, 1e-6)
