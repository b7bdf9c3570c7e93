"""Folders for other programs: the library `adapters`, and vLLM."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.toys.causal import build, kind_in, save_model
from tests.toys.files import ROOT
from tests.toys.image_text import TYPES
from tests.toys.image_text.claims import EXPERTS_ALONE
from tests.toys.image_text.rows import tiny
from tests.toys.models import hf_config, shake
from tests.toys.trained_runs import (
    assert_same,
    convert,
    state_of,
    text_logits,
    write_pair,
)
from tests.toys.vllm_rules import complaints, needs_tower_option
from tests.toys.world import world_recipe
from vlds.artifact import LoadedRun
from vlds.convert.adapters import AdaptersFolders
from vlds.convert.peft import PeftFolders
from vlds.convert.target import Target, read_state_dict, scrub
from vlds.models import JointSeq2Seq
from vlds.models.backbones import T5, Bart
from vlds.models.build import build_model
from vlds.models.methods import Adapter, Compacter, LoRA, Method
from vlds.models.model import Model
from vlds.models.vision import StoredFeatures
from vlds.recipe.config import Recipe
from vlds.tasks import VQA

# Folders of the library `adapters`: its own ones, which tests/oracles/record.py has had it write,
# open here with its outputs, and ours are the same files.

ORACLES = ROOT / "tests/oracles/adapter_folders"
ROWS = 40
METHODS: dict[str, Method] = {
    "bottleneck": Adapter(reduction=4),
    "norms": Adapter(
        reduction=4, layer_norm_before=True, layer_norm_after=True, cross_attention=False
    ),
    "phm": Compacter(reduction=4),
    "compacter": Compacter(reduction=4, rule="everywhere", block_rank=1),
}
RECORDED = sorted(path.parent.name for path in ORACLES.glob("*/adapter_config.json"))


def recorded_run(case: str, folder: Path) -> LoadedRun:
    """The recorded backbone with our method for a case, whose weights are scrubbed."""
    name, _, kind = case.partition("_")
    family = {"t5": T5, "bart": Bart}[name]
    file = folder / "config.json"
    file.write_text(json.dumps(hf_config(family, ROWS)), encoding="utf-8")
    recipe = Recipe(
        output="-",
        methods={"theirs": METHODS[kind]},
        tasks={"vqa": VQA()},
        model=JointSeq2Seq(
            backbone=family(config=str(file), extra_tokens=0, visual_tokens=4),
            vision=StoredFeatures(dim=2, grid=2),
        ),
    )
    tokens = ["token"] * ROWS  # only their number is looked at
    run = LoadedRun(recipe, tokens, build_model(recipe.model_setup, ["vqa"], torch.float32, tokens))
    scrub(run.model)
    state = run.model.state_dict()
    for key, tensor in load_file(ORACLES / f"{name}.safetensors").items():
        if key.startswith("weights/"):
            state[f"backbone.{key.removeprefix('weights/')}"].copy_(tensor)
    if family is Bart:
        state["backbone.final_logits_bias"].zero_()
    return run


@pytest.mark.parametrize("case", RECORDED)
def test_the_librarys_files_give_its_outputs(case: str, tmp_path: Path) -> None:
    run = recorded_run(case, tmp_path)
    Target(run, set()).fill(AdaptersFolders(run).read(ORACLES / case), ORACLES / case)
    record = load_file(ORACLES / f"{case.partition('_')[0]}.safetensors")
    found = text_logits(run, 0, record["input_ids"], record["decoder_input_ids"])
    expected = record[f"logits/{case.partition('_')[2]}"]
    assert (found - expected).abs().max() < 1e-6 * expected.abs().max()


@pytest.mark.parametrize("case", RECORDED)
def test_our_files_are_the_librarys(case: str, tmp_path: Path) -> None:
    """The same names, numbers and settings, but for those of training."""
    run = recorded_run(case, tmp_path)
    Target(run, set()).fill(AdaptersFolders(run).read(ORACLES / case), ORACLES / case)
    (tmp_path / "out").mkdir()
    AdaptersFolders(run).write(tmp_path / "out")
    names = ("adapter_config.json", "pytorch_adapter.bin")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    ours, theirs = (read_state_dict(f / names[1]) for f in (tmp_path / "out", ORACLES / case))
    assert_same(ours, theirs)
    assert not any(tensor.requires_grad for tensor in ours.values())
    configs = [json.loads((f / names[0]).read_text()) for f in (tmp_path / "out", ORACLES / case)]
    for config in configs:
        if not config["config"]["phm_layer"] or not config["config"]["factorized_phm_W"]:
            config["config"].pop("phm_rank")
    assert configs[0] == configs[1]


@pytest.mark.slow
def test_safetensors_open_too(world: Path, tmp_path: Path) -> None:
    run, other = write_pair("T5", "Adapter", world, tmp_path)
    convert("adapters", "--run", run, "--out", tmp_path / "there")
    file = tmp_path / "there" / "pytorch_adapter.bin"
    save_file(read_state_dict(file), file.with_name("adapter.safetensors"))
    file.unlink()
    convert("adapters", "--from", tmp_path / "there", "--run", other, "--out", tmp_path / "back")
    mine, found = state_of(run), state_of(tmp_path / "back")
    assert all(torch.equal(found[name], mine[name]) for name in mine if "extensions" in name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"non_linearity": "relu"}, "non_linearity is 'relu', and 'gelu_new' by the recipe"),
        ({"reduction_factor": 8}, "reduction_factor is 8, and 4"),
        ({"original_ln_before": True}, "original_ln_before is True"),
        ({"phm_layer": True}, "phm_layer is True"),
    ],
)
def test_settings_that_the_recipe_lacks(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    run = recorded_run("t5_bottleneck", tmp_path)
    for name in ("adapter_config.json", "pytorch_adapter.bin"):
        (tmp_path / name).write_bytes((ORACLES / "t5_bottleneck" / name).read_bytes())
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"config": config["config"] | change}))
    with pytest.raises(ValueError, match=message):
        AdaptersFolders(run).read(tmp_path)
    file.write_text(json.dumps(config | {"model_type": "bert"}))
    with pytest.raises(ValueError, match="model_type is 'bert', and the recipe's backbone a t5"):
        AdaptersFolders(run).read(tmp_path)
    file.write_text("{}")
    with pytest.raises(ValueError, match="has no `config`, so it is not from"):
        AdaptersFolders(run).read(tmp_path)


# Which folders of `vlds convert peft` vLLM serves as LoRA, by its rules.

SERVED = [name for name in TYPES if name != "florence2"]
"""Types that vLLM serves."""
LORA = LoRA(rank=16, train_biases=False, roles=["attn_q", "attn_v", "attn_out", "ffn_out"])


def written(model: Model, kind: Any, method: Method, world: Path, folder: Path) -> Collection[str]:
    """Write a model's method as peft's folder; last words of the model's linear layers."""
    recipe = replace(world_recipe(world, world / "none"), model=kind, methods={"method": method})
    shake(model)
    PeftFolders(LoadedRun(recipe, model.processor, model)).write(folder)
    named = model.backbone.named_modules()
    return {path.rpartition(".")[2] for path, layer in named if isinstance(layer, nn.Linear)}


def image_text(
    model_type: str, method: Method, world: Path, folder: Path, *, train_connector: bool = False
) -> Collection[str]:
    """The same of an image-text model."""
    toy = tiny(model_type)
    kind = replace(toy.kind, train_connector=train_connector)
    model = replace(toy, kind=kind).build({"method": method})
    return written(model, kind, method, world, folder)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("model_type", SERVED)
def test_lora_of_the_language_model(model_type: str, world: Path, tmp_path: Path) -> None:
    roles = LORA.roles[:-1] if model_type in EXPERTS_ALONE else LORA.roles
    linears = image_text(model_type, replace(LORA, roles=roles), world, tmp_path)
    assert complaints(tmp_path, linears) == []
    assert not needs_tower_option(tmp_path)


@pytest.mark.parametrize("model_type", ["qwen2_5_vl", "llava"])
def test_lora_of_the_vision_tower(model_type: str, world: Path, tmp_path: Path) -> None:
    method = LoRA(rank=2, roles=["attn_out"], part="vision", train_biases=False)
    linears = image_text(model_type, method, world, tmp_path)
    assert complaints(tmp_path, linears) == []
    assert needs_tower_option(tmp_path)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "phi3"])
def test_lora_of_a_causal_model(kind: str, world: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "model", kind)
    recipe_kind = kind_in(tmp_path / "model", train_projector=False)
    roles = ["attn_qkv", "attn_out"] if kind == "phi3" else ["attn_q", "attn_v", "attn_out"]
    method = replace(LORA, roles=roles)
    model = build(recipe_kind, {"method": method})
    (tmp_path / "out").mkdir()
    linears = written(model, recipe_kind, method, world, tmp_path / "out")
    assert complaints(tmp_path / "out", linears) == []
    assert not needs_tower_option(tmp_path / "out")
