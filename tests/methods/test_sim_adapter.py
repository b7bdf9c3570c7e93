"""Fusion of other runs' adapters: what it starts from, learns, saves and refuses."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toys.models import TASKS, backbone, batch, build
from tests.toys.trained_runs import logits_of, recipe_with, trained_run, write_run
from vlds.artifact import load_run, own_tensors, save_artifact
from vlds.backbones import T5, Bart
from vlds.methods import Adapter, SimAdapter
from vlds.methods.other_runs import read_adapter
from vlds.methods.sim_adapter import Fusion, guide_loss

FFN: dict[str, Any] = {"attention": False, "cross_attention": False}


@torch.no_grad()
def test_equal_scores_give_the_mean_and_one_candidate_itself() -> None:
    fusion = Fusion(6, {"dtype": torch.float64})
    states, candidates = torch.randn(2, 3, 6).double(), torch.randn(2, 3, 4, 6).double()
    for linear in (fusion.q, fusion.k):
        linear.weight.zero_()
        linear.bias.zero_()
    assert torch.allclose(fusion(states, candidates)[0], candidates.mean(2), atol=1e-5)
    fusion.q.weight.copy_(1e6 * torch.eye(6))
    fusion.k.weight.copy_(torch.eye(6))
    out, attention = fusion(candidates[:, :, 2], candidates)
    chosen = attention.argmax(-1)
    picked = candidates.gather(2, chosen[..., None, None].expand(-1, -1, 1, 6))[:, :, 0]
    assert torch.allclose(out, picked, atol=1e-4)
    assert fusion.distance() < 1e-9


def test_the_guide_alone_finds_its_run() -> None:
    torch.manual_seed(0)
    fusion = Fusion(8, {})
    states, candidates, own = torch.randn(4, 5, 8), torch.randn(4, 5, 3, 8), torch.tensor([1] * 4)
    optimizer = torch.optim.Adam(fusion.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        guide_loss(fusion(states, candidates)[1].mean(1), own).mean().backward()
        optimizer.step()
    assert fusion(states, candidates)[1].mean((0, 1))[1] > 0.9


def test_only_the_attention_trains(tmp_path: Path) -> None:
    method = SimAdapter(adapters={"vqa": Adapter(**FFN), "gqa": Adapter(**FFN)})
    model = build(backbone(T5, tmp_path), {"method": method}).train()
    model(batch(), torch.ones(4)).loss.backward()
    trained = {n for n, p in model.named_parameters() if p.grad is not None and "method" in n}
    assert trained == {n for n, by in model.trained_by.items() if by == "method"}
    assert all(".fusion." in name for name in trained)
    assert len(trained) == 5 * 4
    assert len(TASKS) == 3


def test_runs_become_a_run_that_needs_them_no_longer(world: Path, tmp_path: Path) -> None:
    recipe = recipe_with("T5", "Adapter", world, tmp_path)
    first, *names = recipe.tasks
    own = Adapter(reduction=4, sharing="multiple", **FFN)
    runs = {first: tmp_path / "tasks", "other": tmp_path / "other"}
    methods = {first: own, "other": replace(own, reduction=8, sharing="single")}
    for name, folder in runs.items():
        write_run(replace(recipe, output=str(folder), methods={"adapter": methods[name]}))
    state = load_run(runs[first]).model.state_dict()
    found = read_adapter(runs[first], first)
    path = next(iter(found.tensors))
    stacked = state[f"backbone.{path}.extensions.adapter.down_weight"]
    assert len(stacked) == 1 + len(names)
    assert torch.equal(found.tensors[path]["down_weight"], stacked[:1].float())
    fused = SimAdapter(runs={name: str(folder) for name, folder in runs.items()})
    recipe = replace(recipe, output=str(tmp_path / "fused"), methods={"fused": fused})
    run = trained_run(recipe, spread=0.0)
    frozen = run.model.get_submodule(f"backbone.{path}.extensions.fused.candidates")
    assert torch.equal(frozen[first].down_weight, found.tensors[path]["down_weight"])
    folder = tmp_path / "fused" / "artifact"
    save_artifact(folder, own_tensors(run.model), run.recipe, run.processor)
    for each in runs.values():
        shutil.rmtree(each)
    assert torch.equal(logits_of(load_run(tmp_path / "fused").model), logits_of(run.model))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"runs": {"a": "x"}}, "runs: got .*; name two or more"),
        ({"runs": {"a": "x", "b": "y"}, "guide": -1.0}, "guide: got -1.0"),
        ({"runs": {"a": "x", "b": "y"}, "part": "vision"}, "part: got vision"),
        ({"runs": {"a": "none", "b": "none"}}, "none holds no artifact"),
        (
            {"adapters": {"a": Adapter(), "b": Adapter(**FFN)}},
            "runs: a and b have adapters at unlike places",
        ),
        (
            {"adapters": {"a": Adapter(**FFN), "b": Adapter(**FFN, parallel=True)}},
            "runs: the adapters of b stand beside feed-forward layers",
        ),
    ],
)
def test_what_is_refused(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        build(backbone(Bart, tmp_path), {"method": SimAdapter(**fields)})


def test_runs_without_one_adapter_are_refused(world: Path, tmp_path: Path) -> None:
    run = write_run(recipe_with("T5", "Compacter", world, tmp_path))
    with pytest.raises(ValueError, match="its methods are Compacter; name a run with one Adapter"):
        read_adapter(run, "vqa")
    run = write_run(recipe_with("T5", "Adapter per task", world, tmp_path))
    with pytest.raises(ValueError, match="one for each task, and it has no task dance"):
        read_adapter(run, "dance")
