"""Folders of the library `adapters`: its own ones, which tests/oracles/record.py has had it write,
open here with its outputs, and ours are the same files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.toys.files import ROOT
from tests.toys.models import hf_config
from tests.toys.trained_runs import (
    assert_same,
    convert,
    state_of,
    text_logits,
    write_pair,
)
from vlds.artifact import LoadedRun
from vlds.convert.adapters import AdaptersFolders
from vlds.convert.target import Target, read_state_dict, scrub
from vlds.models import JointSeq2Seq
from vlds.models.backbones import T5, Bart
from vlds.models.build import build_model
from vlds.models.methods import Adapter, Compacter, Method
from vlds.models.vision import StoredFeatures
from vlds.recipe.config import Recipe
from vlds.tasks import VQA

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


def test_both_families_are_recorded() -> None:
    """On T5 the library does not save a rule that all layers share."""
    expected = {f"{name}_{kind}" for name in ("t5", "bart") for kind in METHODS}
    assert set(RECORDED) == expected - {"t5_compacter"}


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
@pytest.mark.parametrize("family", ["T5", pytest.param("Bart", marks=pytest.mark.slow)])
def test_there_and_back_on_disk(family: str, world: Path, tmp_path: Path) -> None:
    """Weights of each task have a folder each."""
    first, second = write_pair(family, "Compacter per task", world, tmp_path)
    convert("adapters", "--run", first, "--out", tmp_path / "there", "--verify")
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["caption", "vqa"]
    words = ["--from", tmp_path / "there", "--run", second, "--out", tmp_path / "back", "--verify"]
    convert("adapters", *words, "--tolerance", "0")
    mine, theirs = state_of(first), state_of(second)
    expected = {n: (mine if "extensions" in n else theirs)[n] for n in mine}
    assert_same(state_of(tmp_path / "back"), expected)


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
        ({"scaling": 4.0}, "scaling is 4.0, and 1.0"),
        ({"is_parallel": True}, "is_parallel is True"),
        ({"original_ln_before": True}, "original_ln_before is True"),
        ({"leave_out": [0]}, r"leave_out is \[0\]"),
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
