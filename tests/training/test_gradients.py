"""A run notices weights that should train and do not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from tests.toys.engines import (
    NUM_EXAMPLES,
    Case,
    case_recipe,
    global_batch,
    make_case,
    own_micro_batches,
    recipe_model,
    start_engine,
)
from tests.toys.rank_pool import RankPool
from tests.toys.recipes import with_model
from vlds.models.methods import Adapter, LoRA, Method
from vlds.models.methods.host import Host, LinearExtension
from vlds.models.visual_embedding import VisualEmbeddingConfig
from vlds.runtime.deepspeed_start import start_ranks
from vlds.schema import OptimizerRule, OptimizerRules
from vlds.training.gradients import WATCHED_STEPS, GradientWatch


@dataclass(frozen=True, kw_only=True)
class Forgotten(Method):
    """Weights whose module does not use them."""

    used: int = 0
    """How many of the modules do."""

    def attach(self, host: Host) -> list[nn.Parameter]:
        trained: list[nn.Parameter] = []
        for number, linear in enumerate(host.linears("ffn_out").values()):
            module = Shift(number < self.used)
            host.extend_linear(linear, module)
            trained += module.parameters()
        return trained


class Shift(LinearExtension):
    """Adds a number, or forgets it."""

    optimizer_rules: ClassVar[OptimizerRules] = {"shift": OptimizerRule()}

    def __init__(self, used: bool) -> None:
        super().__init__()
        self.used = used
        self.shift = nn.Parameter(torch.ones(1))

    def forward(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        return outputs + self.shift if self.used else outputs


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
@pytest.mark.parametrize("stage", [3, pytest.param(2, marks=pytest.mark.slow)])
def test_nothing_is_said_of_weights_that_train(
    stage: int, ranks2: RankPool, tmp_path: Path
) -> None:
    method = Adapter(reduction=4, sharing="multiple", init="identity")
    for told in ranks2.run(lines_of, make_case(tmp_path, stage=stage, method=method)):
        assert told == [[]] * (WATCHED_STEPS + 1)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [3, pytest.param(2, marks=pytest.mark.slow)])
def test_modules_that_are_never_run(stage: int, ranks2: RankPool, tmp_path: Path) -> None:
    some, none = (make_case(tmp_path, stage=stage, method=Forgotten(used=used)) for used in (3, 0))
    told = ranks2.run(lines_of, some)
    assert told[0] == told[1]
    (line,) = told[0][0]
    assert "takes no part in the loss, and stays as it is: backbone.decoder.block.1" in line
    assert told[0][1:] == [[]] * WATCHED_STEPS
    for told in ranks2.run(lines_of, none):
        (error,) = told[0]
        assert error.startswith("method: none of its 4 trainable tensors takes part in the loss")


def lines_without_boxes(case: Case) -> list[list[str]]:
    """What a rank is told of a model whose boxes are all zero."""
    run = with_model(case_recipe(case), visual_embedding=VisualEmbeddingConfig())
    model, ranks = recipe_model(run), start_ranks(60)
    watch, told = GradientWatch(model, model.trained_by, ranks), []
    for step in range(2):
        model(global_batch(step), torch.ones(NUM_EXAMPLES)).loss.backward()
        told.append(watch.after_step(last=step == 1))
    return told


def test_boxes_of_zeros(ranks2: RankPool, tmp_path: Path) -> None:
    """The projection of boxes has a gradient only where boxes are not zero."""
    (first, last), _ = ranks2.run(lines_without_boxes, make_case(tmp_path))
    assert first == []
    assert last == [
        "no gradient in 2 steps: visual_embedding.box_projection.weight (the boxes are all zero: "
        "model.visual_embedding.boxes, or the data's)"
    ]


def test_what_lies_behind_zeros(ranks2: RankPool, tmp_path: Path) -> None:
    """LoRA's A has no gradient while B is zero: here no optimizer moves it."""
    case = make_case(tmp_path, method=LoRA(rank=2, dropout=0.0))
    (_, last), _ = ranks2.run(lines_without_boxes, case)
    behind = [line for line in last if "behind a matrix that is still zero" in line]
    assert len(behind) == 12
    assert all(".extensions.method.a (" in line for line in behind)
    assert len(last) == 13  # and the boxes


def lines_of_a_connector() -> list[list[str]]:
    """What a rank is told of a connector that no picture goes through, in two steps."""
    model = nn.ModuleDict({"connector": nn.Linear(1, 1), "method": nn.Linear(1, 1)})
    trained_by = {name: name.partition(".")[0] for name, _ in model.named_parameters()}
    watch = GradientWatch(model, trained_by, start_ranks(60))
    row = torch.ones(1, 1)
    (model["method"](row) + 0 * model["connector"](row)).sum().backward()
    return [watch.after_step(last=last) for last in (False, True)]


def test_a_connector_without_pictures(ranks1: RankPool) -> None:
    assert ranks1.run(lines_of_a_connector)[0] == [
        [],
        [
            f"no gradient in 2 steps: connector.{name} (did no row have a picture?)"
            for name in ("weight", "bias")
        ],
    ]
