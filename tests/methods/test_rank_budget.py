"""AdaLoRA: the budget that peft's own loop gives, on any ranks and stages, resumed bitwise."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.toys.files import read_lines
from tests.toys.models import backbone, batch, build, shake
from tests.toys.rank_jobs import check_complaint, run_recipe
from tests.toys.rank_pool import RankPool
from tests.toys.resumed_runs import check_resume
from tests.toys.world import world_recipe
from vlds.artifact import load_run
from vlds.models.backbones import T5
from vlds.models.kinds.joint import JointModel
from vlds.models.methods import Peft
from vlds.models.methods.peft_method import RankBudget
from vlds.plan import plan_recipe
from vlds.recipe.config import Recipe
from vlds.training.checkpoint import load

peft: Any = pytest.importorskip("peft", reason="peft is not installed: pip install 'vlds[peft]'")
STEPS, RANK, TARGET, MATRICES = 10, 4, 2, 12
SETTINGS: dict[str, Any] = {
    "init_r": RANK, "target_r": TARGET, "lora_alpha": 4, "tinit": 2, "tfinal": 3, "deltaT": 2,
}  # fmt: skip
METHOD = Peft(
    type="ADALORA", settings=SETTINGS, roles=["attn_q", "attn_v", "cross_attn_q", "cross_attn_v"]
)


def rule_of(model: JointModel) -> RankBudget:
    rule = model.step_rules["method"]
    assert isinstance(rule, RankBudget)
    return rule


def theirs(source: nn.Module, started: dict[str, Tensor]) -> Any:
    """peft's own model around a backbone, with the same weights at the start."""
    config = peft.AdaLoraConfig(**SETTINGS, total_step=STEPS, target_modules=["q", "v"])
    model = peft.get_peft_model(source, config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(started[name])
    return model


def test_the_budget_of_pefts_own_loop(tmp_path: Path) -> None:
    """Gradients are given, as a training step may give any: weights stay alike in all steps."""
    ours = build(backbone(T5, tmp_path), {"method": METHOD})
    rule = rule_of(ours)
    base = build(backbone(T5, tmp_path)).backbone
    names = {
        f"base_model.model.{n.removeprefix('backbone.').replace('.extensions.method.tuner', '')}": p
        for n, p in ours.named_parameters()
        if ours.trained_by.get(n) == "method"
    }
    other = theirs(base, {n: p.detach() for n, p in names.items()})
    pairs = [(p, names[n]) for n, p in other.named_parameters() if "lora_" in n and "rank" not in n]
    assert len(pairs) == 3 * MATRICES
    draw = torch.Generator().manual_seed(0)
    kept = []
    for step in range(1, STEPS + 1):
        gradients = {}
        for their, our in pairs:
            change = torch.randn(our.shape, generator=draw)
            their.data.add_(change, alpha=0.1)
            our.data.add_(change, alpha=0.1)
            their.grad = torch.randn(our.shape, generator=draw)
            gradients[our] = their.grad
        other.base_model.update_and_allocate(step)
        read = rule.needs_gradients(step, STEPS)
        found = rule.after_step(step, STEPS, {p: gradients[p] for p in read})
        for parameter, mask in found.items():
            parameter.data.masked_fill_(mask, 0.0)
        for their, our in pairs:
            assert torch.equal(their, our), step
        kept.append(sum(int((~mask).sum()) for mask in found.values()))
    # The middle of the fall is by peft's cube; odd steps of it change nothing.
    assert kept[:3] == [0, 0, 0]
    assert RANK * MATRICES > kept[3] > TARGET * MATRICES
    assert kept[4] == 0
    assert kept[5:] == [TARGET * MATRICES] * 5


def test_the_penalty_is_pefts(tmp_path: Path) -> None:
    ours = build(backbone(T5, tmp_path), {"method": METHOD})
    matrices = [p for n, p in rule_of(ours).factors.items() if "lora_E" not in n]
    expected = torch.zeros(())
    for p in matrices:
        gram = p @ p.T if p.shape[0] == RANK else p.T @ p
        expected = expected + torch.norm(gram - torch.eye(RANK), p="fro")
    found = rule_of(ours).penalty()
    assert torch.allclose(found, 0.5 * expected / len(matrices))
    found.backward()
    assert all(p.grad is not None and p.grad.any() for p in matrices)


def test_a_skipped_step_scores_nothing(tmp_path: Path) -> None:
    ours = build(backbone(T5, tmp_path), {"method": METHOD}).eval()
    rule = rule_of(ours)
    shake(ours)
    ours(batch(), torch.ones(4)).loss.backward()
    gradients = {p: p.grad for p in rule.factors.values() if p.grad is not None}
    rule.after_step(1, STEPS, gradients)
    before = {n: b.clone() for n, b in rule.named_buffers()}
    assert any(b.any() for n, b in before.items() if n.startswith("sensitivity"))
    assert rule.after_step(3, STEPS, None) == {}
    assert all(torch.equal(b, before[n]) for n, b in rule.named_buffers())


@pytest.mark.parametrize(
    "copied",
    [deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["deepcopy", "pickle"],
)
def test_a_copy_keeps_to_its_own_weights(
    copied: Callable[[JointModel], JointModel], tmp_path: Path
) -> None:
    ours = build(backbone(T5, tmp_path), {"method": METHOD})
    copy = copied(ours)
    trained = {id(p) for n, p in copy.named_parameters() if copy.trained_by.get(n) == "method"}
    assert {id(p) for p in rule_of(copy).factors.values()} == trained
    assert trained.isdisjoint(map(id, ours.parameters()))


def test_fewer_steps_than_the_run_began_with(tmp_path: Path) -> None:
    """The budget is reached although its last step has passed."""
    ours = build(backbone(T5, tmp_path), {"method": METHOD}).eval()
    rule = rule_of(ours)
    shake(ours)
    ours(batch(), torch.ones(4)).loss.backward()
    rule.after_step(3, 100, {p: p.grad for p in rule.factors.values() if p.grad is not None})
    assert not rule.is_reached()
    masks = rule.after_step(9, STEPS, {})
    assert sum(int((~mask).sum()) for mask in masks.values()) == TARGET * MATRICES
    assert rule.is_reached()


# Whole runs.


def recipe_in(folder: Path, world: Path, stage: int = 2, precision: str = "fp32") -> Recipe:
    recipe = world_recipe(world, folder / "whole", stage, precision)
    model = replace(recipe.model, backbone=replace(recipe.model.backbone, dropout=0.0))  # type: ignore[attr-defined]
    return replace(recipe, model=model, methods={"method": METHOD})


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_ten_steps_are_five_and_five(
    precision: str, world: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    recipe = recipe_in(tmp_path, world, precision=precision)
    check_resume(ranks2, recipe, tmp_path)
    state, _ = load(Path(recipe.output) / "state" / "step-00000010")
    values = [entry["fp32"] for name, entry in state.items() if "lora_E" in name]
    assert sum(int((value != 0).sum()) for value in values) == TARGET * MATRICES
    assert sum("uncertainty" in name for name in state) == 3 * MATRICES
    (bytes_found,) = [
        line["bytes_per_rank"]
        for line in read_lines(Path(recipe.output) / "metrics.jsonl")
        if "bytes_per_rank" in line
    ]
    held = plan_recipe(recipe, [2])[0].files[recipe.training.deepspeed].held
    assert bytes_found == {key: getattr(held, key) for key in bytes_found}
    run = load_run(Path(recipe.output))
    assert not any("step_rules" in name for name, _ in run.model.unique_state())
    found = [p for n, p in run.model.named_parameters() if "lora_E" in n]
    assert sum(int((p != 0).sum()) for p in found) == TARGET * MATRICES


@pytest.mark.parametrize(
    ("num_ranks", "zero", "micro"),
    [
        pytest.param(1, {"stage": 2}, 4, marks=pytest.mark.slow),
        pytest.param(2, {"stage": 1}, 2, marks=pytest.mark.slow),
        pytest.param(
            2, {"stage": 2, "offload_optimizer": {"device": "cpu"}}, 2, marks=pytest.mark.slow
        ),
    ],
    ids=["one rank", "stage 1", "offload"],
)
def test_ranks_and_stages_change_nothing(
    num_ranks: int, zero: dict[str, Any], micro: int, world: Path, tmp_path: Path,
    ranks1: RankPool, ranks2: RankPool,
) -> None:  # fmt: skip
    """Nor do micro-batches. The world's recipe has two of each on two ranks."""
    expected = recipe_in(tmp_path, world)
    assert ranks2.run(run_recipe, expected) == [0, 0]
    file = tmp_path / "zero.json"
    file.write_text(
        json.dumps({"zero_optimization": zero, "zero_force_ds_cpu_optimizer": False}),
        encoding="utf-8",
    )
    other = replace(
        expected,
        output=str(tmp_path / "other"),
        data=replace(expected.data, micro_batch_size=micro),
        training=replace(expected.training, deepspeed=str(file)),
    )
    assert (ranks1 if num_ranks == 1 else ranks2).run(run_recipe, other) == [0] * num_ranks
    lines = [read_lines(Path(recipe.output) / "metrics.jsonl") for recipe in (expected, other)]
    one, two = ([(r["loss"], r["gradient_norm"]) for r in run if "loss" in r] for run in lines)
    assert len(one) == STEPS
    for first, second in zip(one, two, strict=True):
        assert second == pytest.approx(first, rel=1e-4)
    states = [load(Path(r.output) / "state" / "step-00000010")[0] for r in (expected, other)]
    for name, entry in states[0].items():
        if "dropped" in name:
            assert torch.equal(states[1][name]["buffer"], entry["buffer"]), name
        elif "step_rules" in name:
            assert entry["buffer"].any(), name
            assert torch.allclose(states[1][name]["buffer"], entry["buffer"], rtol=0.01), name


# Refusals.


def test_stage_3_is_refused(world: Path, tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, world, stage=3)
    message = "stage = 3, under which methods.method cannot read whole weights and gradients; set 2"
    assert message in check_complaint(recipe)
    with pytest.raises(ValueError, match="cannot read whole weights"):
        plan_recipe(recipe, [2])
    assert len(plan_recipe(recipe_in(tmp_path, world), [2])[0].files) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_r": 4}, "init_r is 4 and target_r 4; AdaLoRA's budget falls"),
        (
            {"total_step": 10},
            r"settings\.total_step: got 10; vlds sets it, to the steps of the run",
        ),
        ({"deltaT": 0}, r"settings\.deltaT: got 0; give a whole number from 1 on"),
        ({"beta1": 1.5}, r"settings\.beta1: got 1\.5; give a number between 0 and 1"),
        ({"r": 3}, r"settings\.r: ADALORA has no such setting"),
    ],
)
def test_settings_that_adalora_does_not_read(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(METHOD, settings=SETTINGS | changes)
