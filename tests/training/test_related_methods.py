"""Methods that draw, look at pictures, add to the loss, stand beside the backbone or change what
trains: ranks, stages and micro-batches change nothing."""

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
    own_micro_batches,
    start_engine,
)
from tests.toys.kinds import kind_recipe
from tests.toys.rank_jobs import run_recipe
from tests.toys.rank_pool import RankPool
from tests.toys.resumed_runs import check_resume, losses
from tests.toys.trained_runs import write_run
from tests.toys.world import world_recipe
from vlds.models.kinds.base import revision_due
from vlds.models.methods import (
    LST,
    VLPET,
    Adapter,
    HyperPELT,
    LoRA,
    Method,
    Mixture,
    Shrinking,
    SimAdapter,
)
from vlds.recipe.config import Recipe
from vlds.training.engine import Engine
from vlds.training.optimizer import parameter_groups, set_learning_rate

SMALL: dict[str, Any] = {"reduction": 4, "task_dim": 6, "hidden_dim": 5, "projected_dim": 4}
FFN = Adapter(reduction=4, sharing="half_shared_up", attention=False, cross_attention=False)
METHODS: dict[str, Method] = {
    "mixture": Mixture(of=FFN, experts=3, consistency=2.0),
    "mixture of lora": Mixture(of=LoRA(rank=2, sharing="multiple", train_biases=False)),
    "vl_pet": VLPET(of=Adapter(reduction=4), gate_width=3, value_width=4),
    "vl_pet small": VLPET(of=Adapter(reduction=4), gate="small", value_width=4),
    "lst": LST(reduction=2),
    "hyper_pelt": HyperPELT(**SMALL, prefix_length=2),
    "sim_adapter": SimAdapter(
        adapters={"caption": Adapter(reduction=4), "vqa": Adapter(reduction=8)},
        guide=0.5, guide_decay_steps=3,
    ),
}  # fmt: skip
STEPS = 6
"""Of methods that change what trains after given steps."""
REVISED: dict[str, Method] = {
    "adapter": Shrinking(of=Adapter(reduction=4), cycles=2, removed=0.6),
    "lora": Shrinking(of=LoRA(rank=4), cycles=2, removed=0.6),
    "norms later": NormsLater(reduction=4),
}


def revise(engine: Engine, case: Case) -> None:
    """Rebuild the engine around what trains from here on."""
    engine.revise(lambda: parameter_groups(engine.model, case_recipe(case)))
    set_learning_rate(engine.parameter_groups, 1.0)


def train(case: Case) -> dict[str, Any]:
    """Losses, added terms and norms of all steps; what trained after each, and the state at the
    end."""
    engine, cut = start_engine(case)
    found: dict[str, Any] = {"losses": [], "added": [], "norms": [], "trained": []}
    for step in range(case.num_steps):
        report = engine.step(own_micro_batches(global_batch(step), engine, cut))
        found["losses"].append(engine.ranks.sum(report.task_losses))
        terms = torch.tensor(list(report.added.values()), dtype=torch.float64)
        found["added"].append(engine.ranks.sum(terms))
        found["norms"].append(report.gradient_norm)
        if revision_due(engine.model, step + 1, case.num_steps):
            revise(engine, case)
        shapes = {name: shape for (name, _), (_, shape) in engine.state_layout().items()}
        found["trained"].append(shapes)
    found["state"] = engine.export()
    engine.close()
    return found


@pytest.mark.sampled(7)
@ANY_CUT
@pytest.mark.parametrize(
    "name", [*METHODS, *(pytest.param(name, marks=pytest.mark.slow) for name in REVISED)]
)
@ANY_FAMILY
def test_any_cut_trains_the_same(
    family: str, name: str, cut: Cut, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    method = (METHODS | REVISED)[name]
    fields: dict[str, Any] = {"dropout": 0.1, "num_steps": 4}
    if name in REVISED:
        fields = {"num_steps": STEPS}
    fields |= {"family": family, "method": method}
    expected, *of_ranks = check_cut(train, cut, request, tmp_path, **fields)
    has_term = isinstance(method, (Mixture, SimAdapter))
    assert len(expected["added"][0]) == has_term
    assert not has_term or expected["added"][0].item() > 0
    assert all(found["trained"] == expected["trained"] for found in of_ranks)
    first, *_, last = (
        sum(shape.numel() for shape in shapes.values()) for shapes in expected["trained"]
    )
    if name in REVISED:
        assert last > first if name == "norms later" else last < first
    else:
        assert last == first


FUSED = Adapter(reduction=4)
KIND_METHODS: dict[str, Method] = {
    "mixture": METHODS["mixture"],
    "hyper_pelt": HyperPELT(**SMALL, prefix_length=2),
    "hyper_pelt blind": HyperPELT(**SMALL, prefix_length=2, visual=False),
}


def kind_methods(name: str, recipe: Recipe) -> dict[str, Method]:
    """The methods of a case; those of fusion read two runs."""
    if name in KIND_METHODS:
        return {"method": KIND_METHODS[name]}
    source = {"adapter": FUSED}
    runs = {
        task: str(write_run(replace(recipe, output=f"{recipe.output}_{task}", methods=source), n))
        for n, task in enumerate(("caption", "vqa"))
    }
    return {"method": SimAdapter(runs=runs, guide=0.5, guide_decay_steps=3)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("causal", "mixture"),
        ("causal", "hyper_pelt"),
        ("causal", "sim_adapter"),
        ("image_text", "mixture"),
        ("image_text", "hyper_pelt blind"),
        ("image_text", "sim_adapter"),
    ],
)
def test_runs_of_other_kinds_resume_and_are_those_of_one_rank(
    kind: str, name: str, world: Path, ranks1: RankPool, ranks2: RankPool, tmp_path: Path
) -> None:
    whole = kind_recipe(kind, world, tmp_path / "whole", stage=3)
    methods = kind_methods(name, whole)
    whole = replace(whole, methods=methods)
    check_resume(ranks2, whole, tmp_path)
    alone = replace(kind_recipe(kind, world, tmp_path / "alone", stage=2), methods=methods)
    assert ranks1.run(run_recipe, alone, False, timeout=120) == [0]
    for one, other in zip(losses(tmp_path / "alone"), losses(tmp_path / "whole"), strict=True):
        assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora", "norms later"])
def test_a_resumed_run_is_the_uninterrupted_one(
    name: str, world: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    recipe = world_recipe(world, tmp_path / "whole", stage=3)
    recipe = replace(recipe, methods={"method": REVISED[name]})
    check_resume(ranks2, recipe, tmp_path)
