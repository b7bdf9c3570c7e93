"""Draws of the running batch."""

from __future__ import annotations

from collections import Counter

import torch
from torch.utils.checkpoint import checkpoint

from vlds.models.methods.context import BatchContext


def drawn(context: BatchContext, keys: int = 200) -> list[int]:
    """Numbers of some layers."""
    return [context.draw(f"layer {key}", 4) for key in range(keys)]


def test_draws_depend_on_seed_step_pass_and_key_alone() -> None:
    context = BatchContext()
    seen = {}
    for seed in (0, 1):
        for step in (0, 1):
            for number in (0, 1):
                context.begin_step(seed, step)
                torch.manual_seed(torch.seed() % 1000)  # of the micro-batch and the rank
                with context.in_pass(number):
                    seen[seed, step, number] = drawn(context)
                context.begin_step(seed, step)
                with context.in_pass(number):
                    assert drawn(context) == seen[seed, step, number]
    assert len({tuple(numbers) for numbers in seen.values()}) == len(seen)


def test_draws_are_uniform() -> None:
    context = BatchContext()
    counts: Counter[int] = Counter()
    for step in range(50):
        context.begin_step(0, step)
        counts.update(drawn(context))
    # 10,000 draws: a standard deviation is 43.
    assert set(counts) == {0, 1, 2, 3}
    assert all(abs(count - 2500) < 200 for count in counts.values())


def test_a_layer_computed_again_draws_as_before() -> None:
    context = BatchContext()
    context.begin_step(0, 0)
    calls: list[tuple[int, ...]] = []

    def layer(states: torch.Tensor) -> torch.Tensor:
        calls.append(tuple(drawn(context)))
        return states.sin()

    states = torch.ones(1, requires_grad=True)
    outputs = []
    for number in (0, 1):
        with context.in_pass(number):
            outputs.append(checkpoint(layer, states, use_reentrant=False))
    torch.stack(outputs).sum().backward()  # type: ignore[no-untyped-call]
    first, second, *again = calls
    assert first != second
    assert sorted(again) == sorted([first, second])
