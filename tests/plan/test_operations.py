"""How many operations methods add to a micro-batch: a GPU starts each of them alone, and waits for
Python where they are small and many."""

from __future__ import annotations

import json
from functools import cache, partial
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch

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
from vlds.plan.rehearsal import rehearse


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
T5_BASE = 12
"""Layers of each stack."""


@pytest.mark.parametrize(
    ("method", "most", "depth"),
    [
        *((*case, 4) for case in MOST[:4]),
        *(pytest.param(*case, T5_BASE, marks=pytest.mark.slow) for case in MOST),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Method) else str(value),
)
def test_methods_take_few_more_operations_than_full_fine_tuning(
    method: Method, most: float, depth: int
) -> None:
    assert operations(method, depth) <= most * of_full(depth)
