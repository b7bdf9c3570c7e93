"""Sums and norms of gradients are those of DeepSpeed, also where weights have none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toys.engines import Case, global_batch, make_case, own_micro_batches, start_engine
from tests.toys.rank_pool import RankPool
from vlds.models.kernels.fused import CHUNK
from vlds.models.methods.bottleneck import BottleneckModule
from vlds.training import engine
from vlds.training.gradients import square_sum

STEPS = 6
NOT_FINITE = 3
"""The step whose loss is nan."""


def steps_of(case: Case, deepspeed: bool) -> tuple[list[float], Any]:
    """Norms of some steps and the state after them; `deepspeed`: with its own sums."""
    with pytest.MonkeyPatch.context() as patch:
        if deepspeed:
            patch.setattr(engine, "sum_in_place", lambda zero, ranks: None)
        made, cut = start_engine(case)
    first = next(m for m in made.model.modules() if isinstance(m, BottleneckModule))
    norms = []
    for step in range(STEPS):
        batch = global_batch(step)
        if step == NOT_FINITE:
            batch = replace(batch, weights=torch.full_like(batch.weights, torch.nan))
        with pytest.MonkeyPatch.context() as patch:
            if step % 2:  # its weights have no gradient
                patch.setattr(first, "through", lambda states: states)
            report = made.step(own_micro_batches(batch, made, cut))
        assert report.skipped == (step == NOT_FINITE)
        norms.append(report.gradient_norm)
    state = made.export()
    made.close()
    return norms, state


@pytest.mark.sampled(4)
@pytest.mark.parametrize("pool", ["ranks1", "ranks2"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_sums_are_those_of_deepspeed(
    pool: str, precision: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    ranks: RankPool = request.getfixturevalue(pool)
    case = make_case(
        tmp_path, stage=2, precision=precision, clip_norm=0.1, weight_decay=0.5, micro_batch_size=3
    )
    norms, state = ranks.run(steps_of, case, False)[0]
    right_norms, right_state = ranks.run(steps_of, case, True)[0]
    assert norms == pytest.approx(right_norms, rel=1e-6)
    assert len(set(norms)) == STEPS
    for name, tensors in state.items():
        for key, value in tensors.items():
            assert torch.allclose(value, right_state[name][key], rtol=1e-5, atol=1e-7), (name, key)


@pytest.mark.parametrize("size", [0, 1, 5 * CHUNK + 3])
def test_squares_are_summed_in_float64(size: int) -> None:
    values = torch.randn(size, generator=torch.Generator().manual_seed(size))
    assert square_sum(values).item() == pytest.approx(values.double().square().sum().item())
