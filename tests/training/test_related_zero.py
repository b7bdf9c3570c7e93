"""Methods that draw, look at pictures, add to the loss or stand beside the backbone: ranks, stages
and micro-batches change nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toys.any_cut import ANY_CUT, ANY_FAMILY, Cut, check_cut
from tests.toys.engines import (
    NUM_EXAMPLES,
    Case,
    global_batch,
    own_micro_batches,
    start_engine,
)
from tests.toys.kinds import kind_recipe
from tests.toys.rank_jobs import run_recipe
from tests.toys.rank_pool import RankPool
from tests.toys.recipes import short_recipe
from tests.toys.resumed_runs import check_resume, losses
from tests.toys.trained_runs import write_run
from vlds.models.methods import LST, VLPET, Adapter, HyperPELT, LoRA, Method, Mixture, SimAdapter
from vlds.recipe.config import Recipe

STEPS = 4
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


def train(case: Case) -> dict[str, Any]:
    """Losses, added terms and norms of some steps, and the weights after them."""
    made, cut = start_engine(case)
    losses, added, norms = [], [], []
    for step in range(STEPS):
        report = made.step(own_micro_batches(global_batch(step, size=NUM_EXAMPLES), made, cut))
        losses.append(made.ranks.sum(report.task_losses))
        terms = torch.tensor(list(report.added.values()), dtype=torch.float64)
        added.append(made.ranks.sum(terms))
        norms.append(report.gradient_norm)
    state = made.export()
    made.close()
    return {"losses": losses, "added": added, "norms": norms, "state": state}


@pytest.mark.sampled(7)
@ANY_CUT
@pytest.mark.parametrize("name", METHODS)
@ANY_FAMILY
def test_any_cut_trains_the_same(
    family: str, name: str, cut: Cut, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    fields: dict[str, Any] = {"family": family, "method": METHODS[name], "dropout": 0.1}
    expected, *_ = check_cut(train, cut, request, tmp_path, **fields)
    has_term = isinstance(METHODS[name], (Mixture, SimAdapter))
    assert len(expected["added"][0]) == has_term
    assert not has_term or expected["added"][0].item() > 0


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
def test_a_resumed_run_fuses_what_it_has_fused(
    world: Path, ranks1: RankPool, tmp_path: Path
) -> None:
    """Run states hold no frozen weights, so the runs must be those that the state saw."""
    recipe = short_recipe(world, tmp_path / "fused", stage=2)
    recipe = replace(recipe, training=replace(recipe.training, steps=2))
    recipe = replace(recipe, methods=kind_methods("sim_adapter", recipe))
    assert ranks1.run(run_recipe, recipe, timeout=120) == [0]
    longer = replace(recipe, training=replace(recipe.training, steps=4))
    source = replace(recipe, output=f"{recipe.output}_vqa", methods={"adapter": FUSED})
    write_run(source, seed=7)
    message = r"was trained on another methods\.method\.runs\.vqa than the run that it names is now"
    with pytest.raises(Exception, match=message):
        ranks1.run(run_recipe, longer, True, timeout=120)
    write_run(source, seed=1)
    assert ranks1.run(run_recipe, longer, True, timeout=120) == [0]
