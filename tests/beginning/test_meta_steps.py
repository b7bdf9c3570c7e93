"""Outer steps over tasks; tests/parity/test_related.py has the original code's results."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vlds.training.meta import Half, MetaSteps, outer_rate

INPUTS, OUTPUTS, ROWS = 6, 3, 16
Examples = Callable[[], tuple[Tensor, Tensor]]
"""Draws inputs and targets of a task."""


def family(seed: int, num_tasks: int) -> list[Examples]:
    """Linear regressions whose matrices lie near each other, and far from 0."""
    draw = torch.Generator().manual_seed(seed)
    centre = torch.randn(OUTPUTS, INPUTS, generator=draw)

    def task(matrix: Tensor) -> Examples:
        def examples() -> tuple[Tensor, Tensor]:
            inputs = torch.randn(ROWS, INPUTS, generator=draw)
            return inputs, inputs @ matrix.T

        return examples

    return [
        task(centre + 0.1 * torch.randn(centre.shape, generator=draw)) for _ in range(num_tasks)
    ]


def half_of(weight: Tensor, examples: tuple[Tensor, Tensor]) -> Half:
    """The mean squared error of a matrix, as half of a task."""

    def backward() -> float:
        inputs, targets = examples
        loss = (inputs @ weight.T - targets).square().mean()
        loss.backward()
        return loss.item()

    return backward


def random_start(seed: int) -> nn.Parameter:
    draw = torch.Generator().manual_seed(100 + seed)
    return nn.Parameter(0.3 * torch.randn(OUTPUTS, INPUTS, generator=draw))


def meta_steps(weight: nn.Parameter) -> MetaSteps:
    return MetaSteps([weight], torch.optim.Adam([weight], lr=0.05, betas=(0.0, 0.999)), 5.0)


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    weight = random_start(0)
    (task,) = family(0, num_tasks=1)
    inputs, targets = task()
    bad = half_of(weight, (inputs / 0, targets))
    made, before = meta_steps(weight), weight.detach().clone()
    made.step([(half_of(weight, task()), bad)], 1.0)
    assert torch.equal(weight, before), "the change of the second step counts, and there was none"
    assert made.num_skipped == 1
    made.step([(bad, half_of(weight, task()))], 1.0)
    assert made.num_skipped == 2
    assert weight.isfinite().all()
    assert not torch.equal(weight, before)


def test_the_rate_falls_to_nothing() -> None:
    assert [outer_rate(0.8, step, 4) for step in range(5)] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0])
