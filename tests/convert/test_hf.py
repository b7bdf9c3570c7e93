"""A converted folder opens in Hugging Face and here, moves, and gives the run's own numbers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from tests.toys.recipes import with_model
from tests.toys.trained_runs import logits_of, recipe_from, save_random_run
from vlds.artifact import load_run
from vlds.convert.hf import convert_run
from vlds.models.backbones import T5
from vlds.models.methods import Full
from vlds.models.vision import ConvNet
from vlds.recipe.config import MetaConfig, Recipe


def converted(recipe: Recipe, out: Path, *, merge: bool = False) -> torch.Tensor:
    """Save a run of this recipe, convert it; the run's logits."""
    save_random_run(recipe)
    convert_run(Path(recipe.output), out, merge=merge)
    return logits_of(load_run(Path(recipe.output)).model)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("source", ["T5", "FLAN", "Bart", "config"])
def test_outputs_on_images_are_the_runs(source: str, world: Path, tmp_path: Path) -> None:
    expected = converted(recipe_from(source, world, tmp_path), tmp_path / "out")
    shutil.move(tmp_path / "out", tmp_path / "moved")
    loaded = load_run(tmp_path / "moved")
    assert torch.equal(logits_of(loaded.model), expected)


@pytest.mark.slow
def test_a_backbone_that_had_random_weights(world: Path, tmp_path: Path) -> None:
    """Pretrained ones have no `embedding_std`."""
    recipe = recipe_from("config", world, tmp_path)
    assert isinstance(recipe.model.backbone, T5)
    recipe = with_model(recipe, backbone=replace(recipe.model.backbone, embedding_std=0.1))
    expected = converted(replace(recipe, meta=MetaConfig()), tmp_path / "out")
    loaded = load_run(tmp_path / "out")
    assert torch.equal(logits_of(loaded.model), expected)
    assert loaded.recipe.meta is None, "a run on the folder begins as it is"


@pytest.mark.slow
@pytest.mark.parametrize("source", ["T5", "FLAN"])
def test_the_text_backbone_opens_in_hugging_face(source: str, world: Path, tmp_path: Path) -> None:
    converted(recipe_from(source, world, tmp_path), tmp_path / "out")
    text = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    run = load_run(tmp_path / "run").model.backbone
    # Older versions of transformers ask the file whether the head is the token table.
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is (source == "T5")
    state = run.state_dict()
    for name, tensor in text.state_dict().items():
        assert torch.equal(tensor, state[name]), name


@pytest.mark.slow
def test_a_converted_folder_is_the_next_runs_frozen_model(world: Path, tmp_path: Path) -> None:
    recipe = replace(recipe_from("config", world, tmp_path), methods={"full": Full()})
    expected = converted(recipe, tmp_path / "out")
    assert isinstance(recipe.model.vision, ConvNet)
    following = with_model(
        replace(recipe, methods={}),
        backbone=replace(
            recipe.model.backbone, path=str(tmp_path / "out"), config=None, tokenizer=None
        ),
        vision=replace(recipe.model.vision, weights=str(tmp_path / "out" / "vision.safetensors")),
        visual_embedding=replace(
            recipe.model.visual_embedding,
            weights=str(tmp_path / "out" / "visual_embedding.safetensors"),
        ),
        train_norms=True,
    )
    from vlds.models.build import build_model

    model = build_model(
        following.model_setup,
        list(following.tasks),
        torch.float32,
        following.model.backbone.load_tokenizer(),
    )
    assert torch.equal(logits_of(model), expected)
