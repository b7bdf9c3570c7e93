"""A whole run of a causal model: evaluating, converting, folding."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.toys.causal import TEMPLATE, causal_recipe, save_model
from tests.toys.files import read_lines
from tests.toys.rank_jobs import run_recipe
from tests.toys.rank_pool import RankPool
from vlds.artifact import load_run
from vlds.cli.main import run_command
from vlds.convert.verify import logits
from vlds.models import Causal
from vlds.models.methods import Full, LoRA
from vlds.recipe.config import Recipe

PREDICTIONS = "predictions/step-00000010/vqa.jsonl"


@pytest.fixture(scope="module")
def whole(world: Path, ranks2: RankPool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks under ZeRO-3."""
    folder = tmp_path_factory.mktemp("run")
    return trained(ranks2, causal_recipe(folder, world, folder / "whole", stage=3))


def trained(pool: RankPool, recipe: Recipe) -> Path:
    """The folder of a run that has ended well."""
    assert pool.run(run_recipe, recipe, timeout=120) == [0] * pool.world_size
    return Path(recipe.output)


def test_evaluate_writes_the_runs_own_predictions(
    whole: Path, ranks1: RankPool, tmp_path: Path
) -> None:
    words = ["evaluate", "--run", str(whole), "--out", str(tmp_path / "out")]
    assert ranks1.run(run_command, words, timeout=60) == [0]
    (file,) = (tmp_path / "out").rglob("vqa.jsonl")
    expected, found = read_lines(whole / PREDICTIONS), read_lines(file)
    assert [line["prediction"] for line in found] == [line["prediction"] for line in expected]
    assert [line["id"] for line in found] == [line["id"] for line in expected]


@pytest.mark.slow
def test_a_converted_folder_opens_in_hugging_face(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["convert", "hf", "--run", str(whole), "--out", str(out), "--verify"]
    assert run_command(words) == 0
    shutil.move(out, tmp_path / "moved")
    moved = load_run(tmp_path / "moved")
    assert isinstance(moved.recipe.model, Causal)
    assert not moved.recipe.model.train_projector
    loaded = load_run(whole)
    assert loaded.processor.chat_template == TEMPLATE
    assert torch.equal(logits(moved, "vqa", ()), logits(loaded, "vqa", ()))
    text = AutoModelForCausalLM.from_pretrained(tmp_path / "moved")
    state = moved.model.backbone.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in text.state_dict().items())
    assert AutoTokenizer.from_pretrained(tmp_path / "moved").chat_template == TEMPLATE


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_a_saved_model_is_trained_further_and_folded(
    kind: str, world: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    """With weights from a folder, in parts; the artifact holds what trains, and what the folder
    lacks."""
    save_model(tmp_path / kind, kind)
    recipe = causal_recipe(tmp_path, world, tmp_path / "run", 3, path=str(tmp_path / kind))
    lora = LoRA(rank=2, roles=["attn_q", "attn_out", "ffn_out"], train_biases=False)
    methods = {"lora": lora, "eyes": Full(part="vision", learning_rate=1e-3)}
    recipe = replace(
        recipe,
        methods=methods,  # type: ignore[arg-type]
        data=replace(recipe.data, parts=2),
    )
    run = trained(ranks2, recipe)
    stored = load_file(run / "artifact" / "weights.safetensors")
    assert all("lora" in n or n.startswith(("connector.", "vision.")) for n in stored)
    words = ["convert", "merge", "--run", str(run), "--out", str(tmp_path / "out")]
    assert run_command([*words, "--verify"]) == 0
    assert load_run(tmp_path / "out").recipe.methods == {}
