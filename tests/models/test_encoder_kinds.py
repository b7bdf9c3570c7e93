"""CLIP-ViL's and METER's kinds: what encoders read, counts, methods, and runs like any other."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, BertConfig, BertModel

from tests.toys.cross_modal import (
    TEXTS,
    batch_of,
    cross_modal_kind,
    cross_modal_recipe,
    pretraining_recipe,
    write_configs,
)
from tests.toys.files import read_lines
from tests.toys.joint_encoder import CLASSES, joint_encoder_kind, joint_encoder_recipe
from tests.toys.kinds import built
from tests.toys.method_cases import ALL_CASES
from tests.toys.models import shake
from tests.toys.rank_jobs import check_complaint, run_recipe
from tests.toys.rank_pool import RankPool
from tests.toys.recipes import with_model
from tests.toys.resumed_runs import check_resume, losses
from tests.toys.trained_runs import convert, save_run, trained_run
from tests.toys.world import world_recipe
from vlds.artifact import load_run
from vlds.models.build import ModelSetup, describe
from vlds.models.heads import MLPHead
from vlds.models.kinds.cross_modal_model import CoAttention, CoAttentionConfig
from vlds.models.loading.load_backbone import Longest
from vlds.models.loading.model_files import save_module
from vlds.models.methods import Adapter, LoRA, Method
from vlds.models.vision import ClipTokens, ClipVision
from vlds.models.vision.base import load_weights
from vlds.recipe.config import Recipe, parse_recipe
from vlds.runtime.process import find
from vlds.schema import NO_IMAGE
from vlds.tasks.class_output import ClassOutput


@pytest.fixture
def recipe(world: Path, tmp_path: Path) -> Recipe:
    return joint_encoder_recipe(world, tmp_path / "run")


def model_of(recipe: Recipe) -> Any:
    """The recipe's model, without dropout."""
    return built(recipe).eval()


@torch.no_grad()
def test_without_a_picture_it_is_hugging_faces_bert(recipe: Recipe, tmp_path: Path) -> None:
    """What is read of pretrained weights, pooler included; heads read before the pooler's tanh."""
    write_configs(tmp_path)
    saved = BertModel(BertConfig.from_pretrained(tmp_path / "bert.json")).eval()
    saved.save_pretrained(tmp_path / "bert")
    bert = {"path": str(tmp_path / "bert"), "config": None, "train_norms": False}
    model = model_of(replace(with_model(recipe, **bert), methods={}))
    batch = batch_of(recipe, TEXTS)
    blind = replace(batch, image_index=torch.full_like(batch.image_index, NO_IMAGE))
    expected = saved(batch.input_ids, attention_mask=batch.attention_mask).pooler_output
    assert torch.allclose(model.first_states(blind).tanh(), expected, atol=1e-5)
    own = {f"backbone.{name}" for name, _ in model.backbone.named_parameters()}
    assert {name for name in model.sources.names if name.startswith("backbone.")} == own


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("task", "classes", "batch", "rate"),
    [("vqa", 3129, 256, 5e-4), ("gqa", 1842, 16, 1e-5), ("snli_ve", 3, 16, 1e-5)],
)
def test_counts_of_clip_vil(
    tmp_path: Path, task: str, classes: int, batch: int, rate: float
) -> None:
    """With the sizes of bert-base-uncased, which are Hugging Face's defaults."""
    recipe = parse_recipe([str(find(f"recipes/related/clip_vil_{task}.yaml"))])
    assert list(recipe.tasks) == [task]
    assert (recipe.data.global_batch_size, recipe.optimizer.learning_rate) == (batch, rate)
    BertConfig().save_pretrained(tmp_path)
    recipe = with_model(recipe, path=None, config=str(tmp_path / "config.json"))
    head = MLPHead(classes=tuple(f"answer {number}" for number in range(classes)))
    outputs = {task: ClassOutput(head, recipe.tasks[task].class_loss or "cross_entropy")}
    setup = ModelSetup(kind=recipe.model, methods=recipe.methods, outputs=outputs)
    counts = describe(setup, list(recipe.tasks)).by_part
    trainable = {part: count.trainable for part, count in counts.items()}
    last = 1536 * classes + classes
    assert trainable["heads"] == 768 * 1536 + 1536 + 2 * 1536 + last
    if task == "vqa":
        assert trainable["heads"] == 5_993_529
    assert trainable["adapter"] == 24 * 295_872 == 7_100_928
    assert trainable["norms"] == 25 * 2 * 768
    tables = 2 * 15 * 2560  # learned positions of rows and columns, at 480 pixels
    projection_and_norm = 2560 * 768 + 768 + 2 * 768
    assert trainable["visual_embedding"] == projection_and_norm + tables
    assert trainable["vision"] == trainable["backbone"] == 0
    bert = 109_482_240  # bert-base-uncased with its pooler
    assert counts["backbone"].total + counts["norms"].total == bert


def cases() -> list[Any]:
    """Each method's first case; further ones are slow."""
    return [
        pytest.param(name, marks=[pytest.mark.slow] if " " in name else []) for name in ALL_CASES
    ]


def wide_recipe(method: Method, world: Path, folder: Path) -> Recipe:
    """With a method, in a text encoder of two layers and the width that cases are made for."""
    write_configs(folder)
    sizes = json.loads((folder / "bert.json").read_text("utf-8"))
    sizes |= {"hidden_size": 16, "num_hidden_layers": 2}
    (folder / "bert.json").write_text(json.dumps(sizes), encoding="utf-8")
    recipe = joint_encoder_recipe(world, folder / "run")
    kind = joint_encoder_kind(folder)
    return replace(recipe, model=replace(kind, train_norms=False), methods={"method": method})


@pytest.mark.parametrize("name", cases())
def test_methods_train_or_are_refused(name: str, world: Path, tmp_path: Path) -> None:
    """A row is what it is alone, also with trained weights. What needs a decoder, a generator of
    text or a `TextHead` is refused with the reason."""
    case = ALL_CASES[name]
    recipe = wide_recipe(case.method, world, tmp_path)
    # A decoder and classes by text are missing here as they are in causal models.
    reason = case.refused.get("Causal")
    if reason is not None and "no bias" not in reason:
        with pytest.raises(ValueError, match=f"^methods.method: {reason}"):
            describe(recipe.model_setup, list(recipe.tasks))
        return
    model, batch = built(recipe).train(), batch_of(recipe, TEXTS)
    model.context.begin_step(seed=0, step=1)
    model(batch, torch.ones(3)).loss.backward()
    mine = [n for n, by in model.trained_by.items() if by == "method"]
    assert mine
    if name != "Full":
        assert all(model.get_parameter(n).grad is not None for n in mine)
    assert any(p.grad is not None and p.grad.any() for p in map(model.get_parameter, mine))
    model.eval()
    with torch.no_grad():
        before = model.token_nll(batch).sum(1)
        shake(model, spread=0.2)
        together = model.token_nll(batch).sum(1)
        alone = [model.token_nll(batch.select(torch.tensor([row]))).sum() for row in range(3)]
    assert torch.allclose(together, torch.stack(alone), rtol=1e-4, atol=1e-4)
    assert (together != before).all()


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("make", [joint_encoder_recipe, cross_modal_recipe])
def test_a_run_is_resumed_and_its_artifact_answers(
    make: Callable[..., Recipe], stage: int, world: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    recipe = make(world, tmp_path / "whole", stage)
    check_resume(ranks2, recipe, tmp_path)
    loaded = load_run(tmp_path / "whole")
    answers = loaded.model.answer(batch_of(recipe, TEXTS), recipe.tasks["vqa"].decoding)
    assert {answer.text for answer in answers} <= set(CLASSES)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_one_rank_computes_what_two_do(
    stage: int, world: Path, ranks1: RankPool, ranks2: RankPool, tmp_path: Path
) -> None:
    """Loss by loss, with dropout, and with micro-batches: the sum over a step is divided once."""
    found = []
    for pool, micro in ((ranks1, 8), (ranks1, 2), (ranks2, 2)):
        folder = tmp_path / f"{pool.world_size}-{micro}"
        recipe = joint_encoder_recipe(world, folder, stage)
        recipe = replace(recipe, data=replace(recipe.data, micro_batch_size=micro))
        codes = pool.run(run_recipe, recipe, False, timeout=200)
        assert codes == [0] * pool.world_size
        found.append(torch.tensor(losses(folder)))
    for other in found[1:]:
        assert torch.allclose(other, found[0], rtol=1e-4)


@pytest.mark.parametrize("layout", ["merge", "hf"])
def test_a_converted_run_answers_the_same(layout: str, recipe: Recipe, tmp_path: Path) -> None:
    """LoRA is folded into the encoder; what has trained otherwise is saved with it."""
    if layout == "merge":
        lora = LoRA(rank=2, roles=["attn_q", "attn_v"], train_biases=False)
        recipe = replace(recipe, methods={"lora": lora})
    run = trained_run(recipe)
    out = tmp_path / "out"
    convert(layout, "--run", save_run(run), "--out", out)
    found, expected, rows = load_run(out), run.model.eval(), batch_of(recipe, TEXTS)
    states = found.model.eval().first_states(rows)
    assert torch.allclose(states, expected.first_states(rows), atol=1e-5)
    if layout == "merge":
        assert not found.recipe.methods
        return
    kind: Any = found.recipe.model
    assert kind.visual_weights == str(out / "visual_embedding.safetensors")
    assert "AutoModel.from_pretrained" in (out / "README.md").read_text("utf-8")
    assert isinstance(AutoModel.from_pretrained(out), BertModel)


def test_clips_cells_are_read_without_a_class_token(recipe: Recipe, world: Path) -> None:
    cells = with_model(recipe, vision=ClipVision(config=str(world / "clip.json")))
    assert model_of(cells).visual_embedding.num_tokens == 4


# METER's kind.


@pytest.fixture
def meter(world: Path, tmp_path: Path) -> Recipe:
    return cross_modal_recipe(world, tmp_path / "run")


@pytest.mark.parametrize("part", ["backbone", "text", "fusion", "vision"])
@pytest.mark.parametrize("method", [Adapter(reduction=4), LoRA(rank=2, train_biases=False)])
def test_methods_attach_to_parts(method: Method, part: Any, meter: Recipe) -> None:
    model = model_of(replace(meter, methods={"m": replace(method, part=part)}))
    added = [n for n, by in model.trained_by.items() if by == "m"]
    prefixes = {"backbone": "backbone.", "text": "backbone.text.", "fusion": "backbone.fusion."}
    assert added
    assert all(n.startswith(prefixes.get(part, "vision.")) for n in added)
    model(batch_of(meter, TEXTS), torch.ones(3)).loss.backward()
    grads = [model.get_parameter(n).grad for n in added]
    assert all(grad is not None for grad in grads)
    assert any(grad.any() for grad in grads if grad is not None)


def test_other_kinds_refuse_a_class_token(world: Path, tmp_path: Path) -> None:
    joint = with_model(world_recipe(world, tmp_path), vision=cross_modal_kind(world).vision)
    with pytest.raises(ValueError, match=r"vision: ClipTokens gives a class token .*; choose"):
        built(joint)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_matching_and_masked_words_beside_questions(
    stage: int, world: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    meter = pretraining_recipe(world, tmp_path / "run", stage)
    assert ranks2.run(run_recipe, meter, False, timeout=200) == [0, 0]
    scores = [line["scores"] for line in read_lines(tmp_path / "run" / "metrics.jsonl")
              if "scores" in line][-1]  # fmt: skip
    assert set(scores) == {"vqa", "matching", "words"}
    assert 0 <= scores["words"]["restored"] <= 1
    predictions = read_lines(tmp_path / "run/predictions/step-00000010/matching.jsonl")
    assert {line["prediction"] for line in predictions} <= {"true", "false"}


def test_what_the_model_cannot_say_is_refused_before_the_run(world: Path, tmp_path: Path) -> None:
    meter = pretraining_recipe(world, tmp_path / "run")
    wordless = replace(meter, model=cross_modal_kind(world))
    headless = replace(meter, tasks={"vqa": replace(meter.tasks["vqa"], head=None)})
    joint = replace(world_recipe(world, tmp_path / "run"), tasks={"words": meter.tasks["words"]})
    streamed = replace(meter, data=replace(meter.data, reader="sequential"))
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


def test_a_converted_meter_answers_the_same(meter: Recipe, world: Path, tmp_path: Path) -> None:
    """Encoders, streams and positions stand in files of their own; a head of masked words has
    none."""
    larger = ClipTokens(config=str(world / "clip.json"), image_size=24, blocks=2)
    run = trained_run(with_model(meter, vision=larger))
    out = tmp_path / "out"
    convert("hf", "--run", save_run(run), "--out", out)
    found, expected = load_run(out), run.model.eval()
    kind: Any = found.recipe.model
    assert kind.fusion_weights == str(out / "fusion.safetensors")
    assert not kind.train_fusion
    rows = batch_of(meter, TEXTS, side=24)
    assert torch.allclose(found.model.first_states(rows), expected.first_states(rows), atol=1e-5)
    words = with_model(meter, masked_words=True)
    with pytest.raises(ValueError, match="masked_words: its head cannot be exported"):
        words.model.export(built(words), tmp_path / "no")


@pytest.mark.parametrize("has_pooler", [True, False])
def test_a_pretrained_text_encoder_may_have_a_pooler(
    has_pooler: bool, meter: Recipe, world: Path, tmp_path: Path
) -> None:
    """RoBERTa's checkpoints have none; BERT's are opened without theirs."""
    config = BertConfig.from_pretrained(world / "bert.json")
    saved = BertModel(config, add_pooling_layer=has_pooler).eval()
    saved.save_pretrained(tmp_path / "bert")
    pretrained = with_model(meter, path=str(tmp_path / "bert"), config=None)
    model = model_of(replace(pretrained, methods={}))
    rows = batch_of(meter, TEXTS)
    states = model.backbone.text(rows.input_ids, rows.attention_mask).last_hidden_state
    expected = saved(rows.input_ids, rows.attention_mask).last_hidden_state
    assert torch.allclose(states, expected, atol=1e-6)
    frozen = {name for name in model.sources.names if name.startswith("backbone.text.")}
    assert frozen == {f"backbone.text.{name}" for name, _ in model.backbone.text.named_parameters()}


def test_two_pictures_are_two_pairs(meter: Recipe) -> None:
    """The streams run once for each, with another type; a missing picture is a pair of zeros."""
    model = model_of(with_model(meter, num_images=2))
    assert model.state_width == 4 * 16
    one = batch_of(meter, TEXTS)
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
def test_other_text_encoders(kind: str, meter: Recipe, world: Path, tmp_path: Path) -> None:
    """Their layers play the roles; their positions begin behind that of padding."""
    fields = json.loads((world / "bert.json").read_text("utf-8")) | {"model_type": kind}
    (tmp_path / "text.json").write_text(json.dumps(fields), encoding="utf-8")
    other = with_model(meter, config=str(tmp_path / "text.json"))
    lora = {"lora": LoRA(rank=2, part="text", train_biases=False)}
    model = model_of(replace(other, methods=lora))
    assert len([name for name, by in model.trained_by.items() if by == "lora"]) == 2 * 2
    other.model.check_length("tasks.vqa", Longest(1, 63, 1))
    message = r"tasks\.vqa: its longest row has 64 tokens.* 63 positions"
    with pytest.raises(ValueError, match=message):
        other.model.check_length("tasks.vqa", Longest(1, 64, 1))
