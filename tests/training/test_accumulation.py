"""In bf16 the gradients of micro-batches are summed in fp32: many lose no more than one."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.models.toys import Words
from tests.rank_pool import RankPool
from tests.training.test_zero import BETA_1
from tests.training.toys import EPS, Case, global_batch, make_case, part_of, recipe
from vlds.models.build import build_model
from vlds.training.deepspeed_config import BatchPlan, complete_deepspeed_config
from vlds.training.engine import Engine, start_ranks
from vlds.training.optim import parameter_groups
from vlds.training.precision import PRECISIONS

ROWS = 4


def engine_of(case: Case, micro_batches: int) -> Engine:
    """An engine at rate 0 whose weights are bf16 numbers, in bf16 or in fp32."""
    run, ranks = recipe(case), start_ranks(60)
    model = build_model(run.model, list(run.tasks), torch.bfloat16, Words())
    model = model.to(PRECISIONS[case.precision])
    plan = BatchPlan(micro_batches * ROWS * ranks.world_size, ROWS, micro_batches)
    config = complete_deepspeed_config(Path(run.training.deepspeed), run, plan)
    groups, tasks = parameter_groups(model, run), list(run.tasks.values())
    return Engine(model, groups, config, ranks=ranks, tasks=tasks, eps=EPS)


def gradient(case: Case, micro_batches: int) -> Tensor | None:
    """The gradient of each rank's one micro-batch, which comes so many times; on the first rank."""
    made = engine_of(case, micro_batches)
    start = made.ranks.global_rank * ROWS
    made.step([part_of(global_batch(0), slice(start, start + ROWS))] * micro_batches)
    state = made.export()
    made.close()
    if state is None:
        return None
    return torch.cat([t["exp_avg"].flatten() for t in state.values()]) / (1 - BETA_1)


FAST = [("ranks1", 2, 64), ("ranks1", 3, 16)]


@pytest.mark.parametrize(
    ("pool", "stage", "most"),
    [
        pytest.param(*case, marks=() if case in FAST else pytest.mark.slow)
        for case in [*FAST, *product(("ranks1", "ranks2"), (2, 3), (256,))]
    ],
)
def test_many_micro_batches_are_as_exact_as_one(
    pool: str, stage: int, most: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    ranks: RankPool = request.getfixturevalue(pool)
    case = make_case(tmp_path, stage=stage, precision="bf16")
    exact = ranks.run(gradient, replace(case, precision="fp32"), 1)[0]
    errors = []
    for count in (1, 16, 256):
        if count <= max(most, 1):
            found = ranks.run(gradient, case, count, timeout=300)[0]
            errors.append(((found - exact).norm() / exact.norm()).item())
    print(f"relative errors of the gradient: {errors}")
    assert 0 < errors[0] < 0.03
    assert all(error <= errors[0] for error in errors)
