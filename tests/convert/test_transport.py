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


@BY_COST
def test_permuted_copies_merge_exactly_where_a_mean_is_useless(cost: Cost) -> None:
    first = drawn_neurons(1)
    for seed in range(3):
        other = in_other_order(first, seed)
        assert all(map(torch.equal, merged(first, other, cost), first))
        assert distance(first, other) < 1e-12
        assert distance(first, mean(first, other)) > 10


@BY_COST
def test_of_three_adapters_it_matters_which_comes_first(cost: Cost) -> None:
    """All are compared with the first one only. Of two, either may be the first."""
    one, two, three = map(drawn_neurons, range(3))

    def merged_three(first: Neurons, *others: Neurons) -> Neurons:
        return mean(first, *(aligned(first, other, cost, drawn_inputs()) for other in others))

    assert distance(merged(one, two, cost), merged(two, one, cost)) < 1e-12
    assert distance(merged_three(one, two, three), merged_three(two, one, three)) > 1


@BY_COST
def test_an_adapter_merged_with_itself_is_itself(cost: Cost) -> None:
    first = drawn_neurons(2)
    assert all(map(torch.equal, merged(first, first, cost), first))


@BY_COST
def test_a_hundredth_of_noise_costs_little(cost: Cost) -> None:
    first, noise = drawn_neurons(3), drawn_neurons(4)
    other = in_other_order(Neurons(*(a + 0.01 * b for a, b in zip(first, noise, strict=True))), 5)
    assert distance(first, merged(first, other, cost)) < distance(first, mean(first, other)) / 50


@BY_COST
def test_entropic_plans_are_not_exact(cost: Cost) -> None:
    """The larger the share, the more of the neurons' mean each of them becomes."""
    first = drawn_neurons(6)
    other = in_other_order(first, 7)
    small, large = (distance(first, merged(first, other, cost, share)) for share in (0.05, 0.5))
    assert 1e-4 < small < large
    assert distance(first, mean(first, other)) / 4 < large


def test_the_order_of_runs_decides_the_order_of_neurons() -> None:
    one, other = drawn_neurons(8), drawn_neurons(9)
    forth, back = (merged(*pair, "weights_in_out") for pair in ((one, other), (other, one)))
    assert distance(forth, back) < 1e-12
    assert not torch.equal(forth.down, back.down)


def test_a_plan_that_does_not_converge_is_an_error() -> None:
    cost = torch.rand(NEURONS, NEURONS, generator=torch.Generator().manual_seed(0)).double()
    assert (transport_plan(cost, 0.5).sum(0) - 1).abs().max() < 1e-9
    with pytest.raises(ValueError, match="--entropic: got 1e-06; the plan has not converged"):
        transport_plan(cost, 1e-6)
