"""In bf16, gradients of many micro-batches are summed without losing the small ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.models.toys import Words
from tests.rank_pool import RankPool
from tests.training.toys import EPS, Case, global_batch, make_case, part_of, recipe
from vlds.models.build import build_model
from vlds.training.deepspeed_config import complete_deepspeed_config, cut_batches
from vlds.training.engine import Engine, start_ranks
from vlds.training.optim import parameter_groups, set_learning_rate

ROWS = 4
BETA_1 = 0.9


def gradients(case: Case, precision: str, micro_batches: int) -> dict[str, Tensor] | None:
    """The gradient of a step over equal micro-batches: it is that of one, whatever their number."""
    run = recipe(case)
    run = replace(run, training=replace(run.training, precision=precision))  # type: ignore[arg-type]
    ranks = start_ranks(60)
    torch.manual_seed(3)
    # The weights are rounded in both precisions, so that only the arithmetic differs.
    model = build_model(run.model, list(run.tasks), torch.bfloat16, Words())
    if precision == "fp32":
        model = model.float()
    cut = cut_batches(run, ranks.world_size)
    config = complete_deepspeed_config(Path(run.training.deepspeed), run, cut)
    tasks = list(run.tasks.values())
    made = Engine(model, parameter_groups(model, run), config, ranks=ranks, tasks=tasks, eps=EPS)
    set_learning_rate(made.parameter_groups, 1.0)
    own = part_of(global_batch(0), slice(ROWS * ranks.global_rank, ROWS * (ranks.global_rank + 1)))
    made.step([own] * micro_batches)
    state = made.export()
    made.close()
    if state is None:
        return None
    return {name: tensors["exp_avg"] / (1 - BETA_1) for name, tensors in state.items()}


def error(found: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """Relative distance of the whole gradient."""
    one, other = (torch.cat([g.flatten() for _, g in sorted(s.items())]) for s in (found, exact))
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("many", [32, pytest.param(256, marks=pytest.mark.slow)])
@pytest.mark.parametrize("stage", [2, 3])
def test_many_micro_batches_are_as_exact_as_one(
    stage: int, many: int, ranks2: RankPool, tmp_path: Path
) -> None:
    case = make_case(tmp_path, stage=stage)
    exact, one, summed = (
        ranks2.run(gradients, case, precision, number, timeout=300)[0]
        for precision, number in (("fp32", 1), ("bf16", 1), ("bf16", many))
    )
    assert error(one, exact) < 0.02
    assert error(summed, exact) <= 1.02 * error(one, exact)
