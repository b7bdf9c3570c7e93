"""A run notices weights that should train and do not; what no loss reads stays as it is, whatever
weight decay says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from tests.toys.engines import (
    Case,
    global_batch,
    make_case,
    own_micro_batches,
    start_engine,
)
from tests.toys.rank_pool import RankPool
from vlds.models.methods import Method
from vlds.models.methods.host import Host, LinearExtension
from vlds.schema import OptimizerRule, OptimizerRules
from vlds.training.engine import Engine
from vlds.training.gradients import WATCHED_STEPS, GradientWatch

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
