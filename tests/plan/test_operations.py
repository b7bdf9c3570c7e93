"""How many operations methods add to a micro-batch: a GPU starts each of them alone, and waits for
Python where they are small and many.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from functools import cache, partial
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from torch import Tensor

from tests.toys.models import batch, build, hf_config
from vlds.models.backbones import T5
from vlds.models.methods import (
    IA3,
    VLPET,
    Adapter,
    Compacter,
    Full,
    Hyperformer,
    LoRA,
    LowRankAdapter,
    Method,
    PrefixTuning,
    PromptTuning,
)
from vlds.plan import rehearsal as replay
from vlds.plan.rehearsal import AROUND, Operation, Shape, rehearse, seconds_here


def operations(method: Method, depth: int) -> int:
    """Of a micro-batch with three tasks on a GPU in bf16, both ways, of a T5 with so many layers
    in each stack."""
    config = {**hf_config(T5), "num_layers": depth, "num_decoder_layers": depth}
    file = Path(mkdtemp()) / "t5.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    source = T5(config=str(file), extra_tokens=0, visual_tokens=12)
    with torch.device("meta"):
        model = build(source, {"method": method}, dtype=torch.bfloat16)
    return rehearse(model, batch((0, 1, 2, 0, 1, 2)), on_gpu=True).work.calls


of_full = cache(partial(operations, Full()))
"""Those of training all weights, by the number of layers."""
ONE_FOR_ALL = 1.1
OF_EACH_TASK = 1.4
MOST: list[tuple[Method, float]] = [
    # The first ones come nearest to their bound.
    (Compacter(reduction=4), ONE_FOR_ALL),
    (LoRA(rank=2), ONE_FOR_ALL),
    (LoRA(rank=2, sharing="multiple"), OF_EACH_TASK),
    (Hyperformer(reduction=4), OF_EACH_TASK),
    (IA3(), ONE_FOR_ALL),
    (LowRankAdapter(reduction=4), ONE_FOR_ALL),
    (VLPET(), ONE_FOR_ALL),
    (Adapter(reduction=4), ONE_FOR_ALL),
    (PromptTuning(), ONE_FOR_ALL),
    (PrefixTuning(), ONE_FOR_ALL),
    (Adapter(reduction=4, sharing="multiple"), OF_EACH_TASK),
    (Compacter(reduction=4, sharing="multiple"), OF_EACH_TASK),
]
"""Method -> how many times the operations of training all weights it may take."""
LAYERS = 4


@pytest.mark.parametrize(
    ("method", "most"),
    [*MOST[:4], *(pytest.param(*case, marks=pytest.mark.slow) for case in MOST[4:])],
    ids=lambda value: type(value).__name__ if isinstance(value, Method) else str(value),
)
def test_methods_take_few_more_operations_than_full_fine_tuning(
    method: Method, most: float
) -> None:
    assert operations(method, LAYERS) <= most * of_full(LAYERS)


# Operations that run again with tensors of the same shapes.

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


def test_what_zeros_are_wrong_for_counts_as_nothing() -> None:
    refused = Operation.of(torch.linalg.inv, torch.eye(2))
    with pytest.raises(RuntimeError):
        refused.seconds()
    assert seconds_here(Counter([refused])) == (0, AROUND)
