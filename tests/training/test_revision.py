"""Methods that change what trains after given steps: any ranks, stages and cuts give the same run,
and the optimizer goes on with the state that is left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.examples.norms_later import NormsLater
from tests.toys.any_cut import ANY_CUT, ANY_FAMILY, Cut, check_cut
from tests.toys.engines import (
    Case,
    case_recipe,
    global_batch,
    make_case,
    own_micro_batches,
    recipe_model,
    start_engine,
)
from tests.toys.rank_pool import RankPool
from tests.toys.resumed_runs import check_resume
from tests.toys.world import world_recipe
from vlds.models.kinds.base import revision_due
from vlds.models.methods import Adapter, LoRA, Method, Shrinking
from vlds.models.methods.adapter import AdapterModule
from vlds.models.methods.shrinking import num_neurons
from vlds.training.engine import Engine, State
from vlds.training.optimizer import parameter_groups, set_learning_rate

STEPS = 6
METHODS: dict[str, Method] = {
    "adapter": Shrinking(of=Adapter(reduction=4), cycles=2, removed=0.6),
    "lora": Shrinking(of=LoRA(rank=4), cycles=2, removed=0.6),
    "norms later": NormsLater(reduction=4),
}


def revise(engine: Engine, case: Case) -> None:
    """Rebuild the engine around what trains from here on."""
    engine.revise(lambda: parameter_groups(engine.model, case_recipe(case)))
    set_learning_rate(engine.parameter_groups, 1.0)


def train(case: Case) -> dict[str, Any]:
    """Losses and norms of all steps; what trained after each, and the state at the end."""
    engine, cut = start_engine(case)
    losses, norms, trained = [], [], []
    for step in range(STEPS):
        report = engine.step(own_micro_batches(global_batch(step), engine, cut))
        losses.append(engine.ranks.sum(report.task_losses))
        norms.append(report.gradient_norm)
        if revision_due(engine.model, step + 1, STEPS):
            revise(engine, case)
        trained.append({name: shape for (name, _), (_, shape) in engine.state_layout().items()})
    state = engine.export()
    engine.close()
    return {"losses": losses, "norms": norms, "trained": trained, "state": state}


@pytest.mark.slow
@ANY_CUT
@pytest.mark.parametrize("name", METHODS)
@ANY_FAMILY
def test_any_cut_trains_the_same(
    family: str, name: str, cut: Cut, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    fields: dict[str, Any] = {"family": family, "method": METHODS[name], "num_steps": STEPS}
    expected, *of_ranks = check_cut(train, cut, request, tmp_path, **fields)
    assert all(found["trained"] == expected["trained"] for found in of_ranks)
    first, *_, last = (sum(map(size, shapes.values())) for shapes in expected["trained"])
    assert last > first if name == "norms later" else last < first


def size(shape: torch.Size) -> int:
    """Elements of a tensor."""
    return shape.numel()


def shrink_once(case: Case) -> tuple[State, State, float]:
    """The state before and after the first cycle, and the loss of a batch after it."""
    engine, cut = start_engine(case)
    for step in range(STEPS // 3):
        engine.step(own_micro_batches(global_batch(step), engine, cut))
    before = engine.ranks.broadcast(engine.export())
    revise(engine, case)
    after = engine.ranks.broadcast(engine.export())
    batch = global_batch(99)
    with engine.evaluation() as model:
        loss = float(model(batch, torch.ones(len(batch))).loss)
    engine.close()
    return before, after, loss


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_shrunk_is_masked_and_moments_are_slices(
    stage: int, ranks2: RankPool, tmp_path: Path
) -> None:
    method = Shrinking(of=Adapter(reduction=4), cycles=2, removed=0.6)
    case = make_case(tmp_path, stage=stage, method=method, num_steps=STEPS)
    before, after, loss = ranks2.run(shrink_once, case, timeout=120)[0]
    masked = recipe_model(case_recipe(case))
    removed = 0
    with torch.no_grad():
        for name, parameter in masked.named_parameters():
            if name in before:
                parameter.copy_(before[name]["fp32"])
        for path, module in masked.named_modules():
            if not isinstance(module, AdapterModule):
                continue
            weight = before[f"{path}.down_weight"]["fp32"][0]
            left = after.get(f"{path}.down_weight", {"fp32": weight[None, :0]})["fp32"][0]
            kept = [n for n, row in enumerate(weight) if any(torch.equal(row, r) for r in left)]
            gone = [n for n in range(len(weight)) if n not in kept]
            removed += len(gone)
            for leaf, dim in module.neurons.items():
                for key, tensor in before[f"{path}.{leaf}"].items():
                    part = tensor.index_select(dim, torch.tensor(kept, dtype=torch.int64))
                    if kept:
                        assert torch.equal(after[f"{path}.{leaf}"][key], part), (path, leaf, key)
                    else:
                        assert f"{path}.{leaf}" not in after
                module.get_parameter(leaf).index_fill_(dim, torch.tensor(gone).long(), 0.0)
    neurons = sum(num_neurons(m) for m in masked.modules() if isinstance(m, AdapterModule))
    assert neurons - removed == int(neurons * 0.4)
    batch = global_batch(99)
    with torch.no_grad():
        found = float(masked.eval()(batch, torch.ones(len(batch))).loss)
    assert found == pytest.approx(loss, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora", "norms later"])
def test_a_resumed_run_is_the_uninterrupted_one(
    name: str, world: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    recipe = world_recipe(world, tmp_path / "whole", stage=3)
    recipe = replace(recipe, methods={"method": METHODS[name]})
    check_resume(ranks2, recipe, tmp_path)
