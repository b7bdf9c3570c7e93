"""A ladder beside the backbone: what it computes, keeps and refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from tests.toys.files import ROOT
from tests.toys.models import backbone, batch, build, saved_backbone
from tests.toys.recipes import with_model
from tests.toys.world import world_recipe
from vlds.cli.main import run_command
from vlds.models.backbones import T5, Backbone, Bart
from vlds.models.build import build_model
from vlds.models.kinds.joint import JointModel
from vlds.models.methods import LST, Adapter, Method, PromptTuning
from vlds.models.methods.host import side_path
from vlds.models.methods.lst import Ladder
from vlds.recipe.build import build as built
from vlds.recipe.config import save_recipe

"""Sizes at which layers keep more than embeddings and logits do."""
FAMILIES = pytest.mark.parametrize("family", [T5, Bart])


def ladder_of(model: JointModel) -> Ladder:
    """The ladder beside a model's backbone."""
    ladder = side_path(model.backbone)
    assert isinstance(ladder, Ladder)
    return ladder


def rungs(model: JointModel) -> list[Any]:
    """All rungs."""
    return [m for name, m in model.named_modules() if name.endswith(".rung")]


@FAMILIES
def test_no_gradient_runs_through_the_backbone(family: type[Backbone], tmp_path: Path) -> None:
    model = build(backbone(family, tmp_path), {"method": LST(reduction=2)}).train()
    seen: list[bool] = []
    for rung in rungs(model):
        rung.linear.register_forward_pre_hook(
            lambda _, inputs: seen.append(inputs[0].requires_grad)
        )
    model(batch(), torch.ones(4)).loss.backward()
    assert seen == [False] * len(seen)
    assert len(seen) == 4
    read, _ = ladder_of(model).read.value
    assert read.grad_fn is None


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"other": Adapter()}, "methods.other: trains backbone.*remove one of them"),
        ({"other": PromptTuning(length=2)}, "methods.other: trains backbone.*remove one of them"),
    ],
)
def test_what_trains_inside_the_backbone_is_refused(
    other: dict[str, Method], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        build(backbone(T5, tmp_path), {"method": LST(reduction=2), **other})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reduction": 0}, "reduction: got 0"),
        ({"reduction": 3}, "reduction: got 3, and the backbone's d_model is 16; give a divisor"),
        ({"encoder_layers": [2]}, r"encoder_layers: got \[2\]; give numbers from 0 to 1"),
        ({"decoder_layers": [1, 0]}, r"decoder_layers: got \[1, 0\]; give numbers from 0 to 1"),
        ({"decoder_layers": []}, r"decoder_layers: got \[\]"),
        ({"part": "vision"}, "part: got vision"),
        ({"start": "fisher"}, "importance: got None with start: fisher"),
        ({"importance": "x"}, "importance: got x with start: random"),
        ({"start": "fisher", "importance": "none.st"}, "importance: no such file: none.st"),
    ],
)
def test_bad_fields(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        build(backbone(T5, tmp_path), {"method": built(LST, {"reduction": 2, **fields})})


def test_a_side_as_wide_as_the_backbone_can_be_a_copy_of_it(tmp_path: Path) -> None:
    """With closed gates and projections that change nothing, the side computes what the backbone
    computes of text and pictures."""
    source = backbone(T5, tmp_path)
    plain, model = build(source).eval(), build(source, {"method": LST(reduction=1)}).eval()
    ladder = ladder_of(model)
    with torch.no_grad():
        state = {
            name: tensor
            for name, tensor in model.backbone.state_dict().items()
            if "extensions" not in name
        }
        missing, unexpected = ladder.stacks.load_state_dict(state, strict=False)
        assert all(".enter." in name or ".rung." in name for name in missing), missing
        assert set(unexpected) == {"shared.weight", "lm_head.weight"}
        enters = [m.linear for n, m in model.named_modules() if n.endswith(".enter")]
        for linear in (ladder.up, *enters):
            linear.weight.copy_(torch.eye(16))
            linear.bias.zero_()
        for rung in rungs(model):
            rung.gate.fill_(100.0)
        ours, theirs = (m(batch(), torch.ones(4)).loss for m in (model, plain))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)


@pytest.mark.slow
def test_a_start_from_the_backbones_own_weights(world: Path, tmp_path: Path) -> None:
    """The command writes importance; side layers begin with what is left of the backbone's."""
    recipe = with_model(world_recipe(world, tmp_path), train_norms=False)
    save_recipe(recipe, tmp_path / "recipe.yaml")
    file = tmp_path / "importance.safetensors"
    words = ["importance", "--config", str(tmp_path / "recipe.yaml"), "--out", str(file)]
    assert run_command([*words, "--samples", "3"]) == 0
    found = load_file(file)
    assert found["shared.weight"].any()
    assert all((tensor >= 0).all() for tensor in found.values())
    method = LST(reduction=2, start="fisher_sorted", importance=str(file))
    setup = replace(recipe, methods={"method": method}).model_setup
    tokenizer = recipe.model.load_processor()
    model = build_model(setup, list(recipe.tasks), torch.float32, tokenizer)
    side = dict(ladder_of(model).stacks.named_parameters())
    own = dict(model.backbone.named_parameters())
    for name, tensor in side.items():
        if name.startswith("encoder.block.1.layer.0.SelfAttention.o") or "wo" in name:
            rows = own[name].flatten()
            assert all(value in rows for value in tensor.flatten()), name
    in_artifact = method.in_artifact()
    assert (in_artifact.start, in_artifact.importance) == ("random", None)
    assert replace(in_artifact, start=method.start, importance=method.importance) == method
    again = build_model(setup, list(recipe.tasks), torch.float32, tokenizer)
    for name, tensor in ladder_of(again).stacks.named_parameters():
        assert torch.equal(tensor, side[name]), name


@pytest.mark.slow
def test_importance_of_a_pretrained_backbone(world: Path, tmp_path: Path) -> None:
    """On several ranks, with a part of the backbone each, as on one; other weights under the same
    name are refused."""
    (tmp_path / "t5").mkdir()
    plain = world_recipe(world, tmp_path)
    path = str(saved_backbone(T5, tmp_path / "t5").path)
    tokenizer = plain.model.processor_place[0]
    family = replace(plain.model.backbone, path=path, config=None, tokenizer=tokenizer)
    recipe = with_model(plain, backbone=family, train_norms=False)
    save_recipe(recipe, tmp_path / "recipe.yaml")
    file = tmp_path / "importance.safetensors"
    words = ["importance", "--config", str(tmp_path / "recipe.yaml"), "--samples", "2", "--out"]
    # Three ranks, whose parts of a matrix end in padding.
    parts = tmp_path / "parts.safetensors"
    command = [sys.executable, "-m", "vlds", *words, str(parts), "--ranks", "3"]
    subprocess.run(command, cwd=ROOT, check=True)
    assert run_command([*words, str(file)]) == 0
    of_ranks = load_file(parts)
    assert of_ranks.keys() == load_file(file).keys()
    for name, tensor in load_file(file).items():
        assert torch.allclose(of_ranks[name], tensor, rtol=1e-4, atol=1e-12), name
    with safe_open(file, "pt") as of_one, safe_open(parts, "pt") as of_three:
        assert of_one.metadata() == of_three.metadata() != {}
    methods = {"method": LST(reduction=2, start="fisher_sorted", importance=str(file))}
    setup = replace(recipe, methods=methods).model_setup
    processor = recipe.model.load_processor()
    for dtype in (torch.float32, torch.bfloat16):
        build_model(setup, list(recipe.tasks), dtype, processor)
    other = T5.model_class.from_pretrained(path)
    with torch.no_grad():
        other.encoder.block[0].layer[0].SelfAttention.q.weight.mul_(2)
    other.save_pretrained(path)
    with pytest.raises(ValueError, match=r"importance: .* was written for another backbone \(sha"):
        build_model(setup, list(recipe.tasks), torch.float32, processor)


FOREIGN = {
    "no safetensors": (lambda t: b"{}", "is not a whole safetensors file .*; copy it again"),
    "cut off": (lambda t: save(t)[:-8], "is not a whole safetensors file .*; copy it again"),
    "nothing": (lambda t: save({}), r"shared\.weight is missing in .*; write the file for this"),
    "another": (lambda t: save(t | {"other": torch.ones(2)}), r"other is \(2,\) in .*and missing"),
    "one row": (
        lambda t: save(t | {WO: t[WO][:1]}),
        r"wo\.weight is \(1, 24\) in .*, and \(16, 24\) in the backbone",
    ),
    "whole numbers": (lambda t: save(t | {WO: t[WO].long()}), "is I64, floats of 16 to"),
    "eight bits": (lambda t: save(t | {WO: t[WO].to(torch.float8_e4m3fn)}), "is F8_E4M3, floats"),
    "nan": (lambda t: save(t | {WO: t[WO] * torch.nan}), "wo.weight holds nan in .*; write the"),
    "below 0": (lambda t: save(t | {WO: -t[WO]}), r"wo.weight holds -1\.0 in"),
    "zeros": (lambda t: save({n: 0 * each for n, each in t.items()}), "holds zeros alone"),
}
WO = "encoder.block.0.layer.1.DenseReluDense.wo.weight"


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_files_of_importance(name: str, tmp_path: Path) -> None:
    spoilt, message = FOREIGN[name]
    t5 = backbone(T5, tmp_path)
    plain = build(t5, {}).backbone.named_parameters()
    file = tmp_path / "importance.safetensors"
    file.write_bytes(spoilt({name: torch.ones(tensor.shape) for name, tensor in plain}))
    method = LST(reduction=2, start="fisher", importance=str(file))
    with pytest.raises(ValueError, match=f"^methods.method: importance: .*{message}"):
        build(t5, {"method": method})


def test_a_pipe_of_importance_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    method = LST(reduction=2, start="fisher", importance=str(tmp_path / "pipe"))
    with pytest.raises(ValueError, match="is a named pipe, not a regular file"):
        build(backbone(T5, tmp_path), {"method": method})
