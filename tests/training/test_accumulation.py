"""In bf16 the gradients of micro-batches are summed in fp32: many lose no more than one."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.toys.engines import (
    BETA_1,
    EPS,
    Case,
    case_recipe,
    global_batch,
    make_case,
    part_of,
    recipe_model,
)
from tests.toys.models import Words
from tests.toys.rank_pool import RankPool
from vlds.data.config import DataConfig
from vlds.data.order.mixed_order import BatchCut
from vlds.models.build import build_model
from vlds.plan import planned
from vlds.runtime.deepspeed_start import start_ranks
from vlds.training.deepspeed_config import complete_deepspeed_config
from vlds.training.engine import Engine
from vlds.training.optimizer import parameter_groups

ROWS = 4


def engine_of(case: Case, micro_batches: int) -> Engine:
    """An engine at rate 0 whose weights are bf16 numbers, in bf16 or in fp32."""
    run, ranks = case_recipe(case), start_ranks(60)
    model = build_model(run.model_setup, list(run.tasks), torch.bfloat16, Words())
    model = model.to(torch.bfloat16 if case.precision == "bf16" else torch.float32)
    run = replace(run, data=DataConfig(global_batch_size=micro_batches * ROWS * ranks.world_size))
    cut = BatchCut(ranks.world_size, ROWS)
    config = complete_deepspeed_config(Path(run.training.deepspeed), run, cut)
    groups, tasks = parameter_groups(model, run), list(run.tasks.values())
    return Engine(model, groups, config, ranks=ranks, tasks=tasks, eps=EPS)


def gradient(case: Case, micro_batches: int) -> Tensor | None:
    """The gradient of each rank's micro-batch, repeated so many times; on the first rank."""
    made = engine_of(case, micro_batches)
    start = made.ranks.global_rank * ROWS
    made.step([part_of(global_batch(0), slice(start, start + ROWS))] * micro_batches)
    state = made.export()
    made.close()
    if state is None:
        return None
    return torch.cat([t["exp_avg"].flatten() for t in state.values()]) / (1 - BETA_1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pool", "stage", "counts"),
    [
        ("ranks1", 2, (32,)),
        ("ranks1", 3, (16,)),
        *product(("ranks1", "ranks2"), (2, 3), [(16, 256)]),
    ],
)
def test_many_micro_batches_are_as_exact_as_one(
    pool: str, stage: int, counts: tuple[int, ...], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    ranks: RankPool = request.getfixturevalue(pool)
    case = make_case(tmp_path, stage=stage, precision="bf16")
    exact = ranks.run(gradient, replace(case, precision="fp32"), 1)[0]
    errors = {}
    for count in (1, *counts):
        found = ranks.run(gradient, case, count, timeout=300)[0]
        errors[count] = ((found - exact).norm() / exact.norm()).item()
    print(f"relative error of the gradient by number of micro-batches: {errors}")
    assert 0 < errors[1] < 0.03
    assert all(error <= errors[1] for error in errors.values())


def bytes_of_sums(case: Case) -> int:
    """What a rank holds of summed gradients between the micro-batches of a step."""
    made = engine_of(case, 2)
    batch = part_of(global_batch(0), slice(0, ROWS))
    output = made._deepspeed(batch, torch.ones(ROWS), [])
    made._deepspeed.backward(output.loss, scale_wrt_gas=False)
    zero = made._optimizer
    if case.stage == 3:
        held = int(zero.grad_partitions_flat_buffer.nbytes)
    else:
        held = sum(sums.flat_partition.nbytes for sums in zero.averaged_gradients.values())
    made.close()
    return held


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_the_plan_knows_the_sums(stage: int, ranks2: RankPool, tmp_path: Path) -> None:
    case = make_case(tmp_path, stage=stage, precision="bf16")
    run = case_recipe(case)
    model = recipe_model(run)
    zero = {"stage": stage, "stage3_param_persistence_threshold": 0}
    expected = planned(model, parameter_groups(model, run), zero, 2).gradients
    assert ranks2.run(bytes_of_sums, case) == [expected] * 2
