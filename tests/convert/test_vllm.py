"""Which folders of `vlds convert peft` vLLM serves as LoRA, by its rules."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from tests.toys.causal import build, kind_in, save_model
from tests.toys.image_text import TYPES
from tests.toys.image_text.claims import EXPERTS_ALONE
from tests.toys.image_text.rows import tiny
from tests.toys.models import shake
from tests.toys.vllm_rules import complaints, needs_tower_option
from tests.toys.world import world_recipe
from vlds.artifact import LoadedRun
from vlds.convert.peft import PeftFolders
from vlds.models.methods import IA3, LoRA, Method, Peft
from vlds.models.model import Model

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


def test_a_trained_projector_has_no_folder(world: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    kind = kind_in(tmp_path / "model")
    method = replace(LORA, roles=["attn_q"])
    with pytest.raises(ValueError, match=r"^model.train_projector: true, .* or train with false"):
        written(build(kind, {"method": method}), kind, method, world, tmp_path)


def test_a_rank_above_the_servers(world: Path, tmp_path: Path) -> None:
    linears = image_text("qwen2_vl", replace(LORA, rank=20), world, tmp_path)
    assert complaints(tmp_path, linears) == ["rank 20 is above 16"]
    assert complaints(tmp_path, linears, max_rank=32) == []


def test_a_trained_connector_is_refused(world: Path, tmp_path: Path) -> None:
    linears = image_text("llava", LORA, world, tmp_path, train_connector=True)
    found = complaints(tmp_path, linears)
    assert found[0] == "modules_to_save"
    assert len(found) > 1
    assert all("multi_modal_projector" in line for line in found[1:])


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (IA3(), "r is missing"),
        (Peft(type="LORA", settings={"r": 2, "use_dora": True}, roles=["attn_q"]), "use_dora"),
        (Peft(type="LOHA", settings={"r": 2}, roles=["attn_q"]), "lora_alpha is missing"),
    ],
)
def test_other_methods_are_refused(
    method: Method, message: str, world: Path, tmp_path: Path
) -> None:
    linears = image_text("qwen2_vl", method, world, tmp_path)
    assert complaints(tmp_path, linears)[0] == message


def test_rank_stabilised_lora(world: Path, tmp_path: Path) -> None:
    method = Peft(type="LORA", settings={"r": 4, "use_rslora": True}, roles=["attn_q"])
    linears = image_text("qwen2_vl", method, world, tmp_path)
    assert complaints(tmp_path, linears) == []
