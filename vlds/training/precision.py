"""Types of weights and activations, and whether this CPU has instructions for them."""

from __future__ import annotations

import time

import torch

PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}
SLOW = 4.0
"""Times that bf16 may be slower than fp32 before it is worth a word."""
SIZE, ROUNDS = 256, 5


def slowdown(dtype: torch.dtype) -> float:
    """How many times longer than in fp32 a product of two small matrices takes on this CPU."""
    return product_seconds(dtype) / product_seconds(torch.float32)


def product_seconds(dtype: torch.dtype) -> float:
    """Shortest of a few products, the first of which warms up."""
    matrix = torch.ones(SIZE, SIZE, dtype=dtype)
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        torch.matmul(matrix, matrix)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def slow_precision(precision: str, device: torch.device) -> str | None:
    """What to tell a user whose CPU emulates the precision that the recipe asks for."""
    if precision == "fp32" or device.type != "cpu":
        return None
    times = slowdown(PRECISIONS[precision])
    if times < SLOW:
        return None
    return (
        f"training.precision: {precision} products take {times:.0f} times as long as fp32 ones on "
        "this CPU, which has no instructions for them; --training.precision fp32 is faster here"
    )
