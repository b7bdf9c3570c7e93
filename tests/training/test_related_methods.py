"""Methods that draw, look at pictures, add to the loss, stand beside the backbone or change what
trains: ranks, stages and micro-batches change nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tests.examples.norms_later import NormsLater
from tests.toys.any_cut import ANY_CUT, ANY_FAMILY, Cut, check_cut
from tests.toys.engines import (
    RATE,
    Case,
    case_recipe,
    global_batch,
    make_case,
    own_micro_batches,
    recipe_model,
    start_engine,
)
from tests.toys.files import read_lines
from tests.toys.kinds import kind_recipe
from tests.toys.rank_jobs import run_and_print, run_recipe
from tests.toys.rank_pool import RankPool
from tests.toys.recipes import short_recipe
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
from vlds.models.methods.adapter import AdapterModule
from vlds.models.methods.context import BatchContext
from vlds.models.methods.mixture import of_ffn
from vlds.models.methods.shrinking import num_neurons
from vlds.recipe.config import Recipe
from vlds.training.engine import Engine, State
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
    recipe = replace(recipe, methods={"method": REVISED[name]})
    check_resume(ranks2, recipe, tmp_path)


DRAWING_STEPS, EXPERTS, DECAY = 3, 4, 0.1
OWN_FFN = replace(of_ffn(), reduction=4)
Draw = tuple[int, int, str]
"""Step, pass, and key of a draw."""


class Recorded(BatchContext):
    """Remembers what was drawn."""

    drawn: dict[Draw, set[int]]

    def draw(self, key: str, count: int) -> int:
        number = super().draw(key, count)
        self.drawn.setdefault((self.step, self._pass, key), set()).add(number)
        return number


class Trained(NamedTuple):
    """What a rank has of some steps."""

    drawn: dict[Draw, set[int]]
    states: list[dict[str, dict[str, Tensor]]]
    """Down halves' weights and moments, before the first step and after each; on the first rank."""


def drawing_steps(case: Case) -> Trained:
    made, cut = start_engine(case)
    context = made.model.context
    context.__class__ = Recorded
    assert isinstance(context, Recorded)
    context.drawn, states = {}, []

    def keep() -> None:
        state = made.export() or {}
        kept = {name: tensors for name, tensors in state.items() if name.endswith("down_weight")}
        states.append(kept)

    keep()
    for step in range(DRAWING_STEPS):
        made.step(own_micro_batches(global_batch(step), made, cut))
        keep()
    made.close()
    return Trained(context.drawn, states)


def test_experts_that_are_not_drawn_have_a_gradient_of_zero(
    ranks2: RankPool, tmp_path: Path
) -> None:
    """As in the original code, so that momentum moves them, and weight decay shrinks them."""
    mixture = Mixture(of=OWN_FFN, experts=EXPERTS, consistency=0)
    case = make_case(tmp_path, stage=2, method=mixture, weight_decay=DECAY)
    trained = ranks2.run(drawing_steps, case, timeout=120)[0]
    names = sorted({key for _, _, key in trained.drawn})
    coasting = still = 0
    for number, name in enumerate(trained.states[0]):
        experts = [trained.drawn[step, 0, names[number]] for step in range(DRAWING_STEPS)]
        for step in range(1, DRAWING_STEPS + 1):
            before, after = (trained.states[n][name] for n in (step - 1, step))
            for expert in set(range(EXPERTS)) - experts[step - 1]:
                momentum = 0.9 * before["exp_avg"][expert]
                assert torch.allclose(after["exp_avg"][expert], momentum, atol=1e-9)
                decayed = (1 - RATE * DECAY) * before["fp32"][expert]
                moved = (after["fp32"][expert] - decayed).abs().max()
                if expert in set().union(*experts[:step]):
                    assert moved > 1e-5
                    coasting += 1
                else:
                    assert moved < 1e-6
                    still += 1
    assert coasting
    assert still


def test_a_run_says_that_it_takes_two_passes(world: Path, ranks2: RankPool, tmp_path: Path) -> None:
    recipe = short_recipe(world, tmp_path / "run", stage=2)
    training = replace(recipe.training, steps=1)
    recipe = replace(recipe, training=training, methods={"mix": Mixture(of=OWN_FFN)})
    code, said = ranks2.run(run_and_print, recipe, timeout=120)[0]
    assert code == 0
    assert "2 passes over each batch (methods.mix); `vlds plan` says what they cost" in said
    assert read_lines(tmp_path / "run/metrics.jsonl")[0]["passes"] == 2  # for `vlds compare`
