"""A run notices weights that should train and do not; what no loss reads stays as it is, whatever
weight decay says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from tests.toys.engines import (
    BETA_1,
    EPS,
    NUM_EXAMPLES,
    Case,
    case_recipe,
    global_batch,
    make_case,
    own_micro_batches,
    part_of,
    recipe_model,
    start_engine,
)
from tests.toys.models import Words
from tests.toys.rank_pool import RankPool
from vlds.data.config import DataConfig
from vlds.data.order.mixed_order import BatchCut
from vlds.models.build import build_model
from vlds.models.methods import Method
from vlds.models.methods.bottleneck import BottleneckModule
from vlds.models.methods.host import Host, LinearExtension
from vlds.runtime.deepspeed_start import start_ranks
from vlds.schema import OptimizerRule, OptimizerRules
from vlds.training import engine
from vlds.training.deepspeed_config import complete_deepspeed_config
from vlds.training.engine import Engine
from vlds.training.gradients import WATCHED_STEPS, GradientWatch
from vlds.training.optimizer import parameter_groups, similar_rows

STEPS, LATE = 6, 3
"""Steps, and the step from which the second weight is read. ZeRO wants all ranks to read the same
weights."""


class Shift(LinearExtension):
    """Adds a number, or does not read it."""

    optimizer_rules: ClassVar[OptimizerRules] = {"shift": OptimizerRule()}

    def __init__(self, reads: bool) -> None:
        super().__init__()
        self.reads = reads
        self.shift = nn.Parameter(torch.full((3,), 0.5))

    def forward(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        return outputs + self.shift[0] if self.reads else outputs


@dataclass(frozen=True, kw_only=True)
class Shifts(Method):
    """A number behind each feed-forward layer."""

    used: int = 4
    """How many of them are read."""

    def attach(self, host: Host) -> list[nn.Parameter]:
        trained: list[nn.Parameter] = []
        for number, linear in enumerate(host.linears("ffn_out").values()):
            module = Shift(number < self.used)
            host.extend_linear(linear, module)
            trained += module.parameters()
        return trained


def lines_of(case: Case) -> list[list[str]]:
    """What a rank is told after each of some steps; the error in its place."""
    made, cut = start_engine(case)
    watch = GradientWatch(made.model, made.model.trained_by, made.ranks)
    told: list[list[str]] = []
    for step in range(WATCHED_STEPS + 1):
        made.step(own_micro_batches(global_batch(step % 2), made, cut))
        try:
            told.append(watch.after_step(last=False))
        except ValueError as error:
            told.append([str(error)])
            break
    made.close()
    return told


@pytest.mark.slow
@pytest.mark.parametrize("stage", [3, 2])
def test_modules_that_are_never_run(stage: int, ranks2: RankPool, tmp_path: Path) -> None:
    some, none = (make_case(tmp_path, stage=stage, method=Shifts(used=used)) for used in (3, 0))
    told = ranks2.run(lines_of, some)
    assert told[0] == told[1]
    (line,) = told[0][0]
    assert "takes no part in the loss, and stays as it is: backbone.decoder.block.1" in line
    assert told[0][1:] == [[]] * WATCHED_STEPS
    for told in ranks2.run(lines_of, none):
        (error,) = told[0]
        assert error.startswith("method: none of its 4 trainable tensors takes part in the loss")


def read_by(step: int, engine: Engine) -> None:
    """The first number is never read, the second from a step on, the others always."""
    shifts = [module for module in engine.model.modules() if isinstance(module, Shift)]
    shifts[0].reads = False
    shifts[1].reads = step >= LATE


def shifts_after_each_step(case: Case, first: int = 0, before: Any = None) -> list[Any]:
    """States of the numbers after each step, of an engine that may resume."""
    made, cut = start_engine(case)
    if before is not None:
        made.restore(before, first, 0, [0] * 3)
    states = []
    for step in range(first, STEPS):
        read_by(step, made)
        made.step(own_micro_batches(global_batch(step), made, cut))
        states.append(made.export())
    made.close()
    return states


@pytest.mark.sampled(2)
@pytest.mark.parametrize("stage", [3, 2])
def test_what_no_loss_reads_stays(stage: int, ranks2: RankPool, tmp_path: Path) -> None:
    case = make_case(tmp_path, stage=stage, method=Shifts(), weight_decay=0.5)
    states, _ = ranks2.run(shifts_after_each_step, case)
    names = [name for name in states[0] if name.endswith(".shift")]
    start = torch.full((3,), 0.5)
    for step, state in enumerate(states):
        never, late, *others = [state[name]["fp32"] for name in names]
        assert torch.equal(never, start)
        assert torch.equal(late, start) == (step < LATE), step
        # Of these only the first element has a gradient; the weight as a whole decays.
        assert others
        assert all((other[1:] < start[1:]).all() for other in others)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("first", [2, 5])
def test_a_resumed_run_knows_what_has_been_read(
    first: int, ranks2: RankPool, tmp_path: Path
) -> None:
    """Bit for bit, before the second weight is first read, and after."""
    case = make_case(tmp_path, stage=2, method=Shifts(), weight_decay=0.5)
    whole, _ = ranks2.run(shifts_after_each_step, case)
    resumed, _ = ranks2.run(shifts_after_each_step, case, first, whole[first - 1])
    for state, expected in zip(resumed, whole[first:], strict=True):
        for name, tensors in expected.items():
            assert all(torch.equal(state[name][key], tensors[key]) for key in tensors), name


# Gradients of micro-batches and parts: their sums and norms are those of the whole batch, and of
# DeepSpeed, also where weights have none and in bf16.

SUMMED = 6
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
    for step in range(SUMMED):
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
    assert len(set(norms)) == SUMMED
    for name, tensors in state.items():
        for key, value in tensors.items():
            assert torch.allclose(value, right_state[name][key], rtol=1e-5, atol=1e-7), (name, key)


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


@pytest.mark.parametrize("parts", [2, 4, NUM_EXAMPLES])
def test_parts_have_every_row_once_and_the_same_loss(tmp_path: Path, parts: int) -> None:
    model = recipe_model(case_recipe(make_case(tmp_path)))
    batch, scale = global_batch(5), torch.linspace(0.1, 1, NUM_EXAMPLES)
    rows = similar_rows(model.sizes(batch), parts)
    assert sorted(torch.cat(rows).tolist()) == list(range(NUM_EXAMPLES))
    assert len(rows) == parts
    found = []
    for cut in ([], rows):
        model.zero_grad()
        output = model(batch, scale, cut)
        output.loss.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        found.append((output, gradients))
    (whole, whole_gradients), (cut_up, cut_gradients) = found
    assert torch.allclose(cut_up.token_nll_sum, whole.token_nll_sum, rtol=1e-5)
    assert torch.allclose(cut_up.loss, whole.loss, rtol=1e-5)
    for one, other in zip(whole_gradients, cut_gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)
