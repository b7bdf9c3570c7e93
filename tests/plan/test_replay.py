"""Operations that run again with tensors of the same shapes."""

from __future__ import annotations

import time
from collections import Counter

import pytest
import torch
from torch import Tensor

from vlds.plan import rehearsal as replay
from vlds.plan.rehearsal import AROUND, Operation, Shape, seconds_here, update_seconds

aten = torch.ops.aten


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(3, 4).t(),
        torch.ones(3, 1).expand(3, 4),
        torch.ones(2, 0, 3),
        torch.tensor(1.5, dtype=torch.bfloat16),
        torch.arange(12).view(3, 4)[:, ::2],
    ],
)
def test_zeros_have_the_same_layout(tensor: Tensor) -> None:
    zeros = Shape.of(tensor).zeros()
    assert Shape.of(zeros) == Shape.of(tensor)
    assert not zeros.any()


def test_same_shapes_are_one_operation() -> None:
    one, other = (Operation.of(aten.add.Tensor, torch.ones(2, n), 1, alpha=2) for n in (3, 3))
    assert Counter([one, other])[one] == 2
    assert one != Operation.of(aten.add.Tensor, torch.ones(2, 3), 1, alpha=3)
    assert one != Operation.of(aten.add.Tensor, torch.ones(3, 2).t(), 1, alpha=2)


def test_seconds_of_products_and_others() -> None:
    def waits(tensor: Tensor, seconds: float) -> None:
        assert tensor.shape == (2, 2)
        time.sleep(seconds)

    product = Operation.of(aten.mm.default, torch.ones(64, 64), torch.ones(64, 64))
    other = Operation.of(waits, torch.ones(2, 2), 0.05)
    assert product.is_product
    assert not other.is_product
    products, others = seconds_here(Counter({product: 2, other: 3}))
    assert 0 < products < others
    assert others >= 0.15


def test_what_is_left_takes_as_long_as_what_was_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def waits(tensor: Tensor) -> None:
        calls.append(len(tensor))
        time.sleep(0.01)

    large, small = (Operation.of(waits, torch.ones(size)) for size in (100, 50))
    monkeypatch.setattr(replay, "BUDGET", 0.0)
    _, others = seconds_here(Counter({small: 1, large: 1}))
    assert set(calls) == {100}
    assert others == pytest.approx(0.015 + 2 * AROUND, rel=0.3)


def test_an_update_takes_as_long_as_its_weights_are_many() -> None:
    assert update_seconds(0, torch.float32) == 0
    one, many = (update_seconds(n, torch.bfloat16) for n in (1 << 20, 1 << 30))
    assert 0 < one < many


def test_what_zeros_are_wrong_for_counts_as_nothing() -> None:
    refused = Operation.of(torch.linalg.inv, torch.eye(2))
    with pytest.raises(RuntimeError):
        refused.seconds()
    assert seconds_here(Counter([refused])) == (0, AROUND)
