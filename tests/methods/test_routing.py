"""Rows go to their task and come back in order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vlds.models.methods.context import BatchContext, TaskRouting, stacked_linear


def mark(rows: Tensor, task: int) -> Tensor:
    return rows * 10 + task


def test_a_batch_that_was_not_announced_is_refused() -> None:
    routing = TaskRouting()
    routing.set(torch.tensor([0, 1]))
    with pytest.raises(AssertionError, match="3 rows, but the batch has 2"):
        routing.apply(mark, torch.zeros(3, 1))


def test_tokens_in_one_line_go_with_their_row() -> None:
    routing = TaskRouting()
    routing.set(torch.tensor([2, 0]))
    flat = routing.apply(mark, torch.arange(6.0)[:, None])
    assert flat[:, 0].tolist() == [2, 12, 22, 30, 40, 50]


TASKS = {"even": [2, 0, 3, 2, 0, 3], "padded": [3, 1, 3, 2, 1, 3, 2, 1], "uneven": [0, 0, 0, 0, 2]}


@pytest.mark.parametrize("shared", [(), ("down",), ("up",)])
@pytest.mark.parametrize("tasks", TASKS.values(), ids=TASKS)
def test_tasks_together_are_as_one_by_one(tasks: list[int], shared: tuple[str, ...]) -> None:
    routing = TaskRouting()
    routing.set(torch.tensor(tasks))
    draw = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).requires_grad_()

    down, up = (1 if half in shared else 4 for half in ("down", "up"))
    states, out = drawn(len(tasks), 2, 5), drawn(len(tasks), 2, 7).detach()
    stacks = [drawn(down, 3, 5), drawn(down, 3), drawn(up, 7, 3)]
    calls: list[int] = []

    def both(rows: Tensor, weight: Tensor, bias: Tensor, last: Tensor) -> Tensor:
        calls.append(len(rows))
        return stacked_linear(stacked_linear(rows, weight, bias).tanh(), last)

    together = routing.apply_stacked(both, states, stacks[:2], stacks[2:])
    assert len(calls) == (len(set(tasks)) if tasks == TASKS["uneven"] else 1)
    rows = [
        both(states[k], *(s[[min(t, len(s) - 1)]] for s in stacks)) for k, t in enumerate(tasks)
    ]
    assert torch.allclose(together, torch.stack(rows), atol=1e-12)
    inputs = [states, *stacks]
    expected = torch.autograd.grad(torch.stack(rows), inputs, out)
    for own, right in zip(torch.autograd.grad(together, inputs, out), expected, strict=True):
        assert torch.allclose(own, right, atol=1e-12)


@pytest.mark.parametrize("sizes", [(4, 4, 4), (1, 1, 4), (4, 4, 1)])
def test_gradients_come_in_one_order(sizes: tuple[int, int, int]) -> None:
    """DeepSpeed sends them in the order in which they come, which ranks must have in common."""
    orders = set()
    for tasks in (*TASKS.values(), [1, 1]):
        routing = TaskRouting()
        routing.set(torch.tensor(tasks))
        shapes = (3, 5), (3,), (5, 3)
        stacks = [
            torch.zeros(size, *shape, requires_grad=True)
            for size, shape in zip(sizes, shapes, strict=True)
        ]
        order = note_order(stacks)
        states = torch.ones(len(tasks), 2, 5, requires_grad=True)
        routing.apply_stacked(two_layers, states, stacks[:2], stacks[2:]).sum().backward()  # type: ignore[no-untyped-call]
        orders.add(tuple(order))
    assert len(orders) == 1


def note_order(weights: list[Tensor]) -> list[int]:
    """Numbers of the weights, to which each adds its own when its gradient comes."""
    order: list[int] = []
    for number, weight in enumerate(weights):
        weight.register_post_accumulate_grad_hook(lambda _, number=number: order.append(number))
    return order


def two_layers(rows: Tensor, weight: Tensor, bias: Tensor, last: Tensor) -> Tensor:
    return stacked_linear(stacked_linear(rows, weight, bias), last)


# Draws of the running batch.


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
