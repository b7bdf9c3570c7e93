"""Fusion of other runs' adapters: what it starts from, learns, saves and refuses."""

from __future__ import annotations

import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.toys.kinds import kind_recipe
from tests.toys.models import backbone, batch, build, shake
from tests.toys.trained_runs import (
    logits_of,
    recipe_with,
    trained_run,
    write_run,
)
from vlds.artifact import load_run, own_tensors, save_artifact
from vlds.convert.verify import logits
from vlds.models.backbones import T5, Bart
from vlds.models.methods import Adapter, Method, SimAdapter
from vlds.models.methods.sim_adapter import (
    Fusion,
    FusionModule,
    guide_loss,
    log_mean,
    read_adapter,
)
from vlds.runtime.json_files import write_manifest
from vlds.schema import IGNORED_LABEL

FFN: dict[str, Any] = {"attention": False, "cross_attention": False}


def test_runs_without_attention_have_finite_gradients() -> None:
    """Of an example with a run of its own, and of one without."""
    log_attention = torch.tensor([[[-500.0, 0.0]], [[-500.0, 0.0]]], requires_grad=True)
    assert log_attention.exp()[..., 0].max() == 0
    loss = guide_loss(log_mean(log_attention, torch.ones(2, 1)), torch.tensor([0, -1]))
    assert loss.tolist() == [500, 0]
    loss.sum().backward()
    assert log_attention.grad is not None
    assert log_attention.grad.tolist() == [[[-1, 0]], [[0, 0]]]


@pytest.mark.parametrize("with_self", [False, True])
def test_a_place_computes_what_its_formula_says(with_self: bool, tmp_path: Path) -> None:
    """Against plain operations on its weights, with the layer's own output between the runs."""
    adapters: dict[str, Method] = {"vqa": Adapter(**FFN), "gqa": Adapter(reduction=4, **FFN)}
    method = SimAdapter(adapters=adapters, with_self=with_self)
    model = build(backbone(Bart, tmp_path), {"method": method}).double()
    shake(model)
    place = next(module for module in model.modules() if isinstance(module, FusionModule))
    width = place.fusion.q.in_features
    drawn = torch.Generator().manual_seed(0)
    states, weight = (
        torch.randn(2, 5, width, generator=drawn, dtype=torch.float64, requires_grad=True)
        for _ in range(2)
    )
    candidates = []
    for name in ["gqa", "self", "vqa"] if with_self else ["gqa", "vqa"]:
        if name == "self":
            candidates.append(states)
            continue
        adapter = dict(place.candidates[name].named_parameters())
        down = states @ adapter["down_weight"][0].T + adapter["down_bias"][0]
        inner = math.sqrt(2 / math.pi) * (down + 0.044715 * down**3)
        up = (0.5 * down * (1 + inner.tanh())) @ adapter["up_weight"][0].T
        candidates.append(states + up + adapter["up_bias"][0])
    fusion = place.fusion
    query = states @ fusion.q.weight.T + fusion.q.bias
    scores = [(query * (one @ fusion.k.weight.T + fusion.k.bias)).sum(-1) for one in candidates]
    powers = [score.exp() for score in scores]
    shares = [power / sum(powers) for power in powers]
    expected = sum(
        share[..., None] * (one @ fusion.v.weight.T)
        for share, one in zip(shares, candidates, strict=True)
    )
    assert isinstance(expected, Tensor)
    found = place(states, states)
    assert (found - expected).abs().max() < 1e-9
    assert max(share.max() for share in shares) < 1 - 1e-3
    wanted = [states, *fusion.parameters()]
    gradients = (torch.autograd.grad((out * weight).sum(), wanted) for out in (found, expected))
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours - theirs).abs().max() < 1e-9


@pytest.mark.parametrize("with_self", [False, True])
def test_the_loss_has_both_terms(with_self: bool, tmp_path: Path) -> None:
    """Weight by weight, over real tokens alone; the guide fades."""
    weights: dict[str, Any] = {"guide": 0.5, "orthogonality": 0.25, "guide_decay_steps": 8}
    adapters: dict[str, Method] = {"gqa": Adapter(**FFN), "vqa": Adapter(**FFN)}
    method = SimAdapter(adapters=adapters, with_self=with_self, **weights)
    gqa, vqa = 0, 2 if with_self else 1
    plain = replace(method, guide=0.0, orthogonality=0.0)
    source, losses, noted = backbone(T5, tmp_path, dropout=0.0), [], {}
    for each in (method, plain):
        model = build(source, {"method": each}).train()
        shake(model)
        for name, module in model.named_modules():
            if isinstance(module, Fusion):
                module.register_forward_hook(
                    lambda module, inputs, output, name=name: noted.update({name: output[1]})
                )
        model.context.begin_step(seed=0, step=2)
        losses.append(model(batch(), torch.ones(4)).loss)
    distance = sum(m.distance() for m in model.modules() if isinstance(m, Fusion))
    is_label, added = batch().labels != IGNORED_LABEL, torch.zeros(4)
    assert model.context.token_mask is not None
    for name, log_attention in noted.items():
        real = is_label if "decoder" in name else model.context.token_mask
        for row, run in ((0, vqa), (1, gqa), (2, vqa)):  # the last example's task has no run
            share = log_attention.exp()[row, real[row].bool(), run].mean()
            added[row] += 0.5 * (1 - 2 / 8) * -share.log()
    expected = ((added + 0.25 * distance) * is_label.sum(1)).sum()
    assert len(noted) == 4
    assert (losses[0] - losses[1]).item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.slow
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
    named = {name: str(folder) for name, folder in runs.items()}
    fused = SimAdapter(runs=named, with_self=True)
    recipe = replace(recipe, output=str(tmp_path / "fused"), methods={"fused": fused})
    run = trained_run(recipe, spread=0.0)
    frozen = run.model.get_submodule(f"backbone.{path}.extensions.fused.candidates")
    assert torch.equal(frozen[first].down_weight, found.tensors[path]["down_weight"])
    folder = tmp_path / "fused" / "artifact"
    save_artifact(folder, own_tensors(run.model), run.recipe, run.processor)
    for each in runs.values():
        shutil.rmtree(each)
    assert torch.equal(logits_of(load_run(tmp_path / "fused").model), logits_of(run.model))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["causal", "image_text"])
def test_runs_of_other_kinds_are_fused(kind: str, world: Path, tmp_path: Path) -> None:
    """Their language model may lie inside the backbone."""
    runs = {}
    for seed, name in enumerate(("vqa", "caption")):
        recipe = kind_recipe(kind, world, tmp_path / name)
        adapter = Adapter(reduction=4 + 4 * seed, **FFN)
        runs[name] = str(write_run(replace(recipe, methods={"adapter": adapter}), seed))
    recipe = kind_recipe(kind, world, tmp_path / "fused")
    run = trained_run(replace(recipe, methods={"fused": SimAdapter(runs=runs)}), spread=0.0)
    state = run.model.state_dict()
    for name, folder in runs.items():
        adapters = {
            key.replace("adapter", f"fused.candidates.{name}"): tensor
            for key, tensor in load_run(Path(folder)).model.state_dict().items()
            if ".extensions.adapter." in key
        }
        assert len(adapters) == 2 * 4
        assert all(torch.equal(state[key], tensor.float()) for key, tensor in adapters.items())
    save_artifact(tmp_path / "fused/artifact", own_tensors(run.model), run.recipe, run.processor)
    for folder in runs.values():
        shutil.rmtree(folder)
    found, expected = (logits(each, "vqa", ()) for each in (load_run(tmp_path / "fused"), run))
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"runs": {"a": "x"}}, "runs: got .*; name two or more"),
        ({"runs": {}, "with_self": True}, "runs: got .*, or one with with_self: true"),
        ({"runs": {"a": "x", "self": "y"}, "with_self": True}, "runs: self is the name of the lay"),
        ({"runs": {"a": "x", "b": "y"}, "part": "vision"}, "part: got vision"),
        (
            {"runs": {"a": "x", "b": "y"}, "adapters": {"a": Adapter(), "b": Adapter()}},
            "adapters: got a, b, and runs, whose adapters are fused",
        ),
        ({"runs": {"a": "none", "b": "none"}}, "none: no such folder in .*; name one that"),
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


def test_settings_of_adapters_alone_do_not_train() -> None:
    """An artifact's recipe has no runs, so that a run of it would fuse random adapters."""
    fused = SimAdapter(adapters={"a": Adapter(), "b": Adapter()})
    with pytest.raises(ValueError, match="runs: got none, and the adapters a, b would be random"):
        fused.check_steps(10)
    SimAdapter(runs={"a": "x", "b": "y"}).check_steps(10)


def test_strange_runs_are_refused(world: Path, tmp_path: Path) -> None:
    """What is not finite would make every step's loss so."""
    run = write_run(recipe_with("T5", "Adapter", world, tmp_path))
    folder = run / "artifact"
    weights, recipe = folder / "weights.safetensors", folder / "recipe.yaml"
    good, text = load_file(weights), recipe.read_text(encoding="utf-8")
    name = next(name for name in good if name.endswith("down_weight"))
    save_file(good | {name: torch.full_like(good[name], torch.nan)}, weights)
    for changed, message in (
        (text, f"{re.escape(name)} is not finite; name another run"),
        (text.replace("reduction: 4", "reduction: four"), "settings that this vlds cannot use"),
        (text.replace("reduction: 4", "reduction: 4\n      later: 1"), "cannot use .*'later'"),
        (text.replace("init_args:", "arguments:"), "recipe.yaml is not a recipe of a run; name"),
        ("[1, 2]", "recipe.yaml is not a recipe of a run"),
    ):
        recipe.write_text(changed, encoding="utf-8")
        write_manifest(folder)
        with pytest.raises(ValueError, match=message):
            read_adapter(run, "vqa")
        save_file(good, weights)
    recipe.write_text(text, encoding="utf-8")
    weights.write_bytes(b"no tensors" * 9)
    write_manifest(folder)
    with pytest.raises(ValueError, match=r"weights\.safetensors cannot be read .*copy it again"):
        read_adapter(run, "vqa")


def test_runs_without_one_adapter_are_refused(world: Path, tmp_path: Path) -> None:
    run = write_run(recipe_with("T5", "Compacter", world, tmp_path))
    with pytest.raises(ValueError, match="its methods are Compacter; name a run with one Adapter"):
        read_adapter(run, "vqa")
    run = write_run(recipe_with("T5", "Adapter per task", world, tmp_path))
    with pytest.raises(ValueError, match="one for each task, and it has no task dance"):
        read_adapter(run, "dance")
