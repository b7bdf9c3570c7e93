"""Flags of the original's command line that no recorded case has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.toys.files import ROOT
from tests.toys.recorded.case import RecordedCase
from vlds.models.methods.adapter import AdapterModule

GOLDEN = ROOT / "tests/golden"
CASES = [GOLDEN / "bart_single_adapter.json", GOLDEN / "t5_single_adapter.json"]


@pytest.fixture(params=CASES, ids=lambda path: path.stem)
def case(request: pytest.FixtureRequest) -> RecordedCase:
    return RecordedCase(request.param)


def test_active_bottlenecks_cost(case: RecordedCase, tmp_path: Path) -> None:
    """The activations, computed again from the inputs of each adapter."""
    model, task = case.build(tmp_path), case.tasks[0]
    plain = case.loss(model, task)
    case.record["flags"] += " --track_z"
    squares: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        assert isinstance(module, AdapterModule)
        hidden = inputs[1] @ module.down_weight[0].T + module.down_bias[0]
        squares.append(nn.functional.gelu(hidden, approximate="tanh").square().mean())

    for module in model.modules():
        if isinstance(module, AdapterModule):
            module.register_forward_hook(keep)
    tracked = case.loss(model, task)
    expected = 1e-3 * torch.stack(squares).mean().item()
    assert (tracked - plain).item() == pytest.approx(expected, rel=1e-9)
    assert expected > 0
