"""Region-word alignment: cells learn their objects' words, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from data_prep.cli import main
from tests.toys.recipes import with_model
from vlds.data.shards.store import open_dataset
from vlds.models import JointSeq2Seq
from vlds.models.backbones import T5
from vlds.models.build import build_model
from vlds.models.kinds.joint import JointModel
from vlds.models.methods import Adapter
from vlds.models.vision import ConvNet
from vlds.models.visual_embedding import VisualEmbeddingConfig
from vlds.recipe.config import AlignmentConfig, Recipe
from vlds.runtime.ranks import Ranks
from vlds.schema import Sample
from vlds.tasks import GQA
from vlds.training.alignment import Regions, align, cell_words, read_regions

ALONE = Ranks(0, 1, 0, 1, device=torch.device("cpu"))
EMPTY = 1
WORDS = {"red": 5, "small": 6, "circle": 7, "cross": 8}


def spell(text: str) -> list[int]:
    return [WORDS[word] for word in text.split()]


def sample(**extra: object) -> Sample:
    return Sample("000", "gqa", "n1", "gqa", (), (), (), extra)


def test_words_go_to_the_cells_of_their_objects() -> None:
    objects = [
        {"name": "circle", "attributes": ["red", "small"], "x": 30, "y": 4, "w": 10, "h": 8},
        {"name": "cross", "attributes": [], "x": 0, "y": 40, "w": 8, "h": 8},
    ]
    found = cell_words(sample(size=[(48, 48)], source={"objects": objects}), 3, 10, spell, EMPTY)
    assert found.shape == (9, 10)
    assert found[2].tolist() == pytest.approx([0, 0, 0, 0, 0, 1 / 3, 1 / 3, 1 / 3, 0, 0])
    assert found[6, WORDS["cross"]] == 1
    assert [n for n in range(9) if found[n, EMPTY] == 1] == [0, 1, 3, 4, 5, 7, 8]
    assert torch.allclose(found.sum(1), torch.ones(9))


def test_a_sample_without_objects_is_named() -> None:
    with pytest.raises(ValueError, match=r"alignment.data: sample n1 of data set gqa has no obj"):
        cell_words(sample(size=[(48, 48)], source={}), 3, 10, spell, EMPTY)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("alignment")
    assert main(["demo", "--out", str(folder), "--scenes", "200"]) == 0
    data = str(folder / "shards/home/gqa-train")
    return Recipe(
        output=str(folder / "run"),
        methods={"adapter": Adapter()},
        tasks={"gqa": GQA(train=[data])},
        alignment=AlignmentConfig(data=data, steps=80, batch_size=32),
        model=JointSeq2Seq(
            backbone=T5(
                config="recipes/backbones/t5_demo.json",
                tokenizer=str(folder / "spiece.model"),
                extra_tokens=0,
                visual_tokens=9,
            ),
            vision=ConvNet(image_size=48, grid=3, widths=[16, 32, 64, 128]),
            visual_embedding=VisualEmbeddingConfig(boxes="grid"),
        ),
    )


@pytest.mark.slow
def test_cells_come_near_their_words_and_the_rest_stays(recipe: Recipe) -> None:
    tokenizer = recipe.model.backbone.load_tokenizer()
    model = build_model(recipe.model_setup, ["gqa"], torch.float32, tokenizer)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    regions = read_regions(recipe, model)
    assert len(regions.pixels) == open_dataset(recipe.alignment.data).num_samples  # type: ignore[union-attr]
    assert share_of_right_words(model, regions) < 0.2
    align(model, recipe, ALONE)
    assert share_of_right_words(model, regions) > 0.8
    assert model.vision.frozen
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trainable
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    tied = {name for name in before if name.endswith(("shared.weight", "embed_tokens.weight"))}
    visual = tuple(n for n in before if n.startswith(("vision.", "visual_embedding.")))
    assert changed <= {*visual, *tied, "backbone.lm_head.weight"}


def share_of_right_words(model: JointModel, regions: Regions) -> float:
    """Of the cells with an object: those whose nearest word is one of the object's."""
    model.eval()
    with torch.no_grad():
        tokens = model.visual_embedding.embed(model.vision(regions.pixels), None)
        nearest = (tokens @ model.backbone.get_input_embeddings().weight.T).argmax(-1)
    right = regions.words.gather(-1, nearest[..., None])[..., 0] > 0
    filled = regions.words[..., EMPTY] == 0
    return float(right[filled].float().mean())


@pytest.mark.parametrize("part", ["backbone", "vision"])
def test_pretrained_weights_are_refused(recipe: Recipe, part: str) -> None:
    tokenizer = recipe.model.backbone.load_tokenizer()
    model = build_model(recipe.model_setup, ["gqa"], torch.float32, tokenizer)
    changed = (
        with_model(recipe, backbone=T5(path="google-t5/t5-base"))
        if part == "backbone"
        else with_model(recipe, vision=replace(recipe.model.vision, weights="eyes.safetensors"))  # type: ignore[type-var]
    )
    with pytest.raises(ValueError, match="alignment is for models with random weights"):
        align(model, changed, ALONE)
