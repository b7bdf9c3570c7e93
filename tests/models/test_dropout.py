"""Dropout from sixteen bits an element: how often, how it scales, what its gradient is."""

import math

import pytest
import torch

from vlds.methods.dropout import dropout

PROBABILITIES = [0.05, 0.1, 0.5, 0.999]


def drawn(probability: float, count: int = 400_003) -> torch.Tensor:
    torch.manual_seed(0)
    return dropout(torch.ones(count), probability, training=True)


@pytest.mark.parametrize("probability", PROBABILITIES)
def test_each_place_is_dropped_as_often_as_asked(probability: float) -> None:
    dropped = drawn(probability) == 0
    # Four neighbours share one number of the generator: each of the four is looked at alone.
    for place in range(4):
        part = dropped[place::4].double()
        deviation = math.sqrt(probability * (1 - probability) / len(part))
        assert abs(part.mean() - probability) < 4 * deviation


@pytest.mark.parametrize("distance", [1, 2, 3, 4])
def test_neighbours_are_dropped_independently(distance: int) -> None:
    dropped = (drawn(0.5) == 0).double()
    both = (dropped[distance:] * dropped[:-distance]).mean()
    assert abs(both - 0.25) < 4 * math.sqrt(0.25 * 0.75 / len(dropped))


def test_kept_elements_and_their_gradients_are_scaled() -> None:
    inputs = torch.randn(64, 33, requires_grad=True)
    outputs = dropout(inputs, 0.25, training=True)
    outputs.sum().backward()
    kept = outputs != 0
    assert 0 < kept.sum() < kept.numel()
    torch.testing.assert_close(outputs, inputs * kept / 0.75)
    torch.testing.assert_close(inputs.grad, kept / 0.75)


def test_the_seed_fixes_the_draws() -> None:
    assert torch.equal(drawn(0.1), drawn(0.1))


@pytest.mark.parametrize(("probability", "training"), [(0.0, True), (0.1, False)])
def test_nothing_is_dropped_out_of_training_or_at_zero(probability: float, training: bool) -> None:
    inputs = torch.randn(5, 7)
    assert torch.equal(dropout(inputs, probability, training), inputs)


def test_a_probability_close_to_one_keeps_its_bounds() -> None:
    assert drawn(1 - 1e-9).isfinite().all()


def test_half_precision_keeps_its_type() -> None:
    assert dropout(torch.ones(9, dtype=torch.bfloat16), 0.1, training=True).dtype == torch.bfloat16
