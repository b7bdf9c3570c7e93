"""The tape records how random tensors were made, and repeats it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vlds.models.loading.drawn_weights import Tape

SEED = 11


def replayed(tape: Tape, tensor: Tensor, seed: int = SEED) -> Tensor:
    """A tensor's values, with all that is drawn behind it under one seed after another."""
    place = tape.place_of(tensor)
    assert place is not None
    steps = tape.behind(place)
    draws = [number for number in steps if tape.steps[number].draws]
    return tape.replay(steps, place, {n: seed + count for count, n in enumerate(draws)})


def scaled() -> Tensor:
    return nn.Parameter(torch.randn(3, 4) * torch.tensor([1.0, 2.0, 3.0, 4.0]))


def padded() -> Tensor:
    return nn.Embedding(5, 4, padding_idx=2).weight


def orthogonal() -> Tensor:
    return nn.init.orthogonal_(torch.empty(4, 6))


def partly() -> Tensor:
    weight = torch.arange(12.0).view(3, 4).clone()
    weight[1:].normal_()
    return weight


def masked() -> Tensor:
    return torch.ones(40).masked_fill(torch.rand(40) < 0.5, 0.0)


def sliced() -> Tensor:
    return torch.randn(6, 4).chunk(2)[1]


def transposed() -> Tensor:
    return torch.randn(6, 4).T.contiguous()


ONE_DRAW: list[Callable[[], Tensor]] = [
    scaled, padded, orthogonal, partly, masked, sliced, transposed,
]  # fmt: skip


@pytest.mark.parametrize("make", ONE_DRAW)
def test_a_replay_is_what_the_seed_makes(make: Callable[[], Tensor]) -> None:
    with torch.no_grad():
        torch.manual_seed(SEED)
        expected = make()
        with Tape() as tape:
            torch.randn(7)  # other draws before it change nothing
            tensor = make()
        assert not torch.equal(tensor, expected)
        assert torch.equal(replayed(tape, tensor), expected)
        assert not torch.equal(replayed(tape, tensor, SEED + 1), expected)


@pytest.mark.parametrize(("low", "high"), [(-2.0, 2.0), (1.0, 2.0), (-100.0, 100.0)])
def test_a_truncated_normal_does_not_depend_on_what_was_drawn_before(
    low: float, high: float
) -> None:
    """Newer versions of torch make a number of draws that depends on the values."""
    torchs_own = nn.init._no_grad_trunc_normal_
    values = []
    for start in range(6):
        torch.manual_seed(start)
        with Tape() as tape:
            tensor = nn.init.trunc_normal_(torch.empty(100, 100), std=1.0, a=low, b=high)
        values.append(replayed(tape, tensor))
    assert nn.init._no_grad_trunc_normal_ is torchs_own
    assert all(torch.equal(other, values[0]) for other in values)
    expected = nn.init.trunc_normal_(torch.empty(100, 100), std=1.0, a=low, b=high)
    assert values[0].min() >= low
    assert values[0].max() <= high
    torch.testing.assert_close(values[0].mean(), expected.mean(), rtol=0, atol=0.05)
    torch.testing.assert_close(values[0].std(), expected.std(), rtol=0, atol=0.05)


def test_memory_that_was_freed_is_not_taken_for_another() -> None:
    with Tape() as tape:
        for _ in range(50):
            torch.randn(1000)
            assert tape.place_of(torch.ones(1000)) is None
