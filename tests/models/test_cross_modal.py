"""METER's kind: what streams read, roles, counts, and a run like any other."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from tests.toys.cross_modal import (
    TEXTS,
    batch_of,
    cross_modal_kind,
    cross_modal_recipe,
    pretraining_recipe,
)
from tests.toys.files import read_lines
from tests.toys.kinds import built
from tests.toys.rank_jobs import check_complaint, run_recipe
from tests.toys.rank_pool import RankPool
from tests.toys.recipes import with_model
from tests.toys.resumed_runs import check_resume
from tests.toys.trained_runs import convert, save_run, trained_run
from tests.toys.world import world_recipe
from vlds.artifact import load_run
from vlds.models.heads import MLPHead
from vlds.models.kinds.cross_modal_model import CoAttention, CoAttentionConfig, CrossModalModel
from vlds.models.loading.load_backbone import Longest
from vlds.models.loading.model_files import save_module
from vlds.models.methods import Adapter, LoRA, Method
from vlds.models.model import Model
from vlds.models.vision import ClipTokens
from vlds.models.vision.base import load_weights
from vlds.recipe.config import Recipe
from vlds.schema import NO_IMAGE


@pytest.fixture
def recipe(world: Path, tmp_path: Path) -> Recipe:
    return cross_modal_recipe(world, tmp_path / "run")


def model_of(recipe: Recipe) -> CrossModalModel:
    """The recipe's model, without dropout."""
    model: Model = built(recipe).eval()
    assert isinstance(model, CrossModalModel)
    return model


def num_weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_counts_of_meter() -> None:
    with torch.device("meta"):
        fusion = CoAttention(CoAttentionConfig(), 768, 768, True)
        classes = tuple(f"answer {number}" for number in range(3129))
        head = MLPHead(classes=classes, order="norm_gelu", hidden=2 * 768)
        classifier = head.build(2 * 768)
    layers = num_weights(fusion.text_layers) + num_weights(fusion.image_layers)
    assert layers == 113_421_312
    assert num_weights(classifier) == 7_173_177


@pytest.mark.parametrize("part", ["backbone", "text", "fusion", "vision"])
@pytest.mark.parametrize("method", [Adapter(reduction=4), LoRA(rank=2, train_biases=False)])
def test_methods_attach_to_parts(method: Method, part: Any, recipe: Recipe) -> None:
    model = model_of(replace(recipe, methods={"m": replace(method, part=part)}))
    added = [n for n, by in model.trained_by.items() if by == "m"]
    prefixes = {"backbone": "backbone.", "text": "backbone.text.", "fusion": "backbone.fusion."}
    assert added
    assert all(n.startswith(prefixes.get(part, "vision.")) for n in added)
    model(batch_of(recipe, TEXTS), torch.ones(3)).loss.backward()
    grads = [model.get_parameter(n).grad for n in added]
    assert all(grad is not None for grad in grads)
    assert any(grad.any() for grad in grads if grad is not None)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_a_run_is_resumed_and_its_artifact_answers(
    stage: int, world: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    recipe = cross_modal_recipe(world, tmp_path / "whole", stage)
    check_resume(ranks2, recipe, tmp_path)
    loaded = load_run(tmp_path / "whole")
    answers = loaded.model.answer(batch_of(recipe, TEXTS), recipe.tasks["vqa"].decoding)
    assert {answer.text for answer in answers} <= {"red", "green", "blue", "dark"}


def test_other_kinds_refuse_a_class_token(world: Path, tmp_path: Path) -> None:
    joint = with_model(world_recipe(world, tmp_path), vision=cross_modal_kind(world).vision)
    with pytest.raises(ValueError, match=r"vision: ClipTokens gives a class token .*; choose"):
        built(joint)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_matching_and_masked_words_beside_questions(
    stage: int, world: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    recipe = pretraining_recipe(world, tmp_path / "run", stage)
    assert ranks2.run(run_recipe, recipe, False, timeout=200) == [0, 0]
    scores = [line["scores"] for line in read_lines(tmp_path / "run" / "metrics.jsonl")
              if "scores" in line][-1]  # fmt: skip
    assert set(scores) == {"vqa", "matching", "words"}
    assert 0 <= scores["words"]["restored"] <= 1
    predictions = read_lines(tmp_path / "run/predictions/step-00000010/matching.jsonl")
    assert {line["prediction"] for line in predictions} <= {"true", "false"}


def test_what_the_model_cannot_say_is_refused_before_the_run(world: Path, tmp_path: Path) -> None:
    recipe = pretraining_recipe(world, tmp_path / "run")
    wordless = replace(recipe, model=cross_modal_kind(world))
    headless = replace(recipe, tasks={"vqa": replace(recipe.tasks["vqa"], head=None)})
    joint = replace(world_recipe(world, tmp_path / "run"), tasks={"words": recipe.tasks["words"]})
    streamed = replace(recipe, data=replace(recipe.data, reader="sequential"))
    for wrong, complaint in (
        (wordless, "tasks.words: it predicts masked words, .*; set model.masked_words: true"),
        (headless, "tasks.vqa.head: missing, and CrossModal writes no text; name a head"),
        (joint, "tasks.words: .* JointSeq2Seq writes answers; use the model CrossModal"),
        (streamed, "data.reader: got sequential, and tasks.matching compares samples"),
    ):
        assert re.search(complaint, check_complaint(wrong))
    training = replace(headless.training, activation_checkpointing=True)
    with pytest.raises(ValueError, match="CrossModal's streams are not recomputed; switch it off"):
        built(replace(cross_modal_recipe(world, tmp_path), training=training))
    assert not (tmp_path / "run").exists()


def test_a_converted_run_answers_the_same(recipe: Recipe, world: Path, tmp_path: Path) -> None:
    """Encoders, streams and positions stand in files of their own; a head of masked words has
    none."""
    larger = ClipTokens(config=str(world / "clip.json"), image_size=24, blocks=2)
    run = trained_run(with_model(recipe, vision=larger))
    out = tmp_path / "out"
    convert("hf", "--run", save_run(run), "--out", out)
    found, expected = load_run(out), run.model.eval()
    kind: Any = found.recipe.model
    assert kind.fusion_weights == str(out / "fusion.safetensors")
    assert not kind.train_fusion
    rows = batch_of(recipe, TEXTS, side=24)
    assert torch.allclose(found.model.first_states(rows), expected.first_states(rows), atol=1e-5)
    words = with_model(recipe, masked_words=True)
    with pytest.raises(ValueError, match="masked_words: its head cannot be exported"):
        words.model.export(built(words), tmp_path / "no")


@pytest.mark.parametrize("has_pooler", [True, False])
def test_a_pretrained_text_encoder_may_have_a_pooler(
    has_pooler: bool, recipe: Recipe, world: Path, tmp_path: Path
) -> None:
    """RoBERTa's checkpoints have none; BERT's are opened without theirs."""
    config = BertConfig.from_pretrained(world / "bert.json")
    saved = BertModel(config, add_pooling_layer=has_pooler).eval()
    saved.save_pretrained(tmp_path / "bert")
    pretrained = with_model(recipe, path=str(tmp_path / "bert"), config=None)
    model = model_of(replace(pretrained, methods={}))
    rows = batch_of(recipe, TEXTS)
    states = model.backbone.text(rows.input_ids, rows.attention_mask).last_hidden_state
    expected = saved(rows.input_ids, rows.attention_mask).last_hidden_state
    assert torch.allclose(states, expected, atol=1e-6)
    frozen = {name for name in model.sources.names if name.startswith("backbone.text.")}
    assert frozen == {f"backbone.text.{name}" for name, _ in model.backbone.text.named_parameters()}


def test_two_pictures_are_two_pairs(recipe: Recipe) -> None:
    """The streams run once for each, with another type; a missing picture is a pair of zeros."""
    model = model_of(with_model(recipe, num_images=2))
    assert model.state_width == 4 * 16
    one = batch_of(recipe, TEXTS)
    both = replace(one, image_index=torch.tensor([[0, 1], [1, 1], [2, NO_IMAGE]]))
    _, pooled = model.fuse(both)
    first, second = pooled.chunk(2, 1)
    _, alone = model.fuse(one)
    assert torch.allclose(first, alone[:, :32], atol=1e-6)
    assert not torch.allclose(second[1], first[1], atol=1e-3), "the second picture has its own type"
    assert not second[2].any()


def test_saved_streams_may_see_a_second_picture(tmp_path: Path) -> None:
    """As METER begins on NLVR2: the second picture's type is the first one's."""
    torch.manual_seed(0)
    sizes = CoAttentionConfig(width=8, layers=1, heads=2)
    one, two = (CoAttention(sizes, 6, 5, True, num_images) for num_images in (1, 2))
    load_weights(two, save_module(one, tmp_path / "fusion.safetensors"))
    assert torch.equal(two.types.weight, one.types.weight[[0, 1, 1]])
    assert torch.equal(two.text_projection.weight, one.text_projection.weight)
    wider = CoAttention(replace(sizes, width=16), 6, 5, True, 2)
    with pytest.raises(ValueError, match=r"does not fit CoAttention: text_projection\.weight"):
        load_weights(wider, str(tmp_path / "fusion.safetensors"))


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta"])
def test_other_text_encoders(kind: str, recipe: Recipe, world: Path, tmp_path: Path) -> None:
    """Their layers play the roles; their positions begin behind that of padding."""
    fields = json.loads((world / "bert.json").read_text("utf-8")) | {"model_type": kind}
    (tmp_path / "text.json").write_text(json.dumps(fields), encoding="utf-8")
    other = with_model(recipe, config=str(tmp_path / "text.json"))
    lora = {"lora": LoRA(rank=2, part="text", train_biases=False)}
    model = model_of(replace(other, methods=lora))
    assert len([name for name, by in model.trained_by.items() if by == "lora"]) == 2 * 2
    other.model.check_length("tasks.vqa", Longest(1, 63, 1))
    message = r"tasks\.vqa: its longest row has 64 tokens.* 63 positions"
    with pytest.raises(ValueError, match=message):
        other.model.check_length("tasks.vqa", Longest(1, 64, 1))
