"""Checkpoints of METER's and CLIP-ViL's own code open as runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.toys.cross_modal import write_tokenizer
from tests.toys.joint_encoder import joint_encoder_recipe
from tests.toys.kinds import built
from tests.toys.models import shake
from tests.toys.recorded import plain_meter
from tests.toys.recorded.plain_meter import LAYERS, SIDE, TEXT, VISION, WIDTH, Weights
from tests.toys.recorded.related import CLIP_VIL_NAMES, RelatedCase, recorded
from tests.toys.trained_runs import convert, write_run
from tests.toys.world import world_recipe
from vlds.artifact import load_run
from vlds.models import CrossModal
from vlds.models.heads import LinearHead, MLPHead
from vlds.models.kinds.cross_modal_model import CoAttentionConfig, CrossModalModel
from vlds.models.loading.resizing import resized_positions
from vlds.models.methods import Adapter, Full
from vlds.models.vision import ClipTokens, StoredFeatures
from vlds.models.vision.base import normalised
from vlds.models.vision.clip import MEAN, STD
from vlds.recipe.config import Recipe, save_recipe
from vlds.schema import Batch
from vlds.tasks import NLVR2, VQA, Entailment, MaskedWords, Matching, Retrieval, Task
from vlds.training.transfer import Transfer

D = 2 * WIDTH
SCORE = {"weight": (2, D), "bias": (2,)}
PRETRAINED = {
    "itm_score.fc.weight": (2, D), "itm_score.fc.bias": (2,),
    "mlm_score.transform.dense.weight": (WIDTH, WIDTH), "mlm_score.transform.dense.bias": (WIDTH,),
    "mlm_score.transform.LayerNorm.weight": (WIDTH,),
    "mlm_score.transform.LayerNorm.bias": (WIDTH,),
    "mlm_score.decoder.weight": (TEXT["vocab_size"], WIDTH),
    "mlm_score.bias": (TEXT["vocab_size"],),
}  # fmt: skip
CLASSES = tuple(f"answer {number}" for number in range(11))
MLP = MLPHead(order="norm_gelu", hidden=D)
MATCHING = LinearHead(classes=Matching.labels)


def checkpoint(file: Path, heads: Mapping[str, tuple[int, ...]], num_types: int = 2) -> Weights:
    """A file of METER's code with random weights; they, in float64."""
    weights = plain_meter.drawn_weights(plain_meter.shapes(heads, num_types))
    unused = {
        "text_transformer.pooler.dense.weight": torch.ones(24, 24),
        "vit_model.ln_final.weight": torch.ones(8),
        "vit_model.positional_embedding": torch.ones(3, 8),
    }
    torch.save({"state_dict": weights | unused, "global_step": 9}, file)
    return {name: tensor.double() for name, tensor in weights.items()}


def meter_recipe(folder: Path, tasks: dict[str, Task], side: int = SIDE, **fields: Any) -> Recipe:
    """A recipe of the checkpoint's sizes, in which all weights train."""
    if not (folder / "words").exists():
        write_tokenizer(folder / "words")
    text = {"model_type": "roberta", **TEXT}
    clip = {
        "model_type": "clip_vision_model", "hidden_size": VISION["width"],
        "intermediate_size": 4 * VISION["width"], "num_hidden_layers": 2,
        "num_attention_heads": VISION["heads"], "image_size": SIDE, "patch_size": VISION["patch"],
        "layer_norm_eps": 1e-5, "hidden_act": "quick_gelu",
    }  # fmt: skip
    for name, config in (("text", text), ("clip", clip)):
        (folder / f"{name}.json").write_text(json.dumps(config), encoding="utf-8")
    kind = CrossModal(
        config=str(folder / "text.json"),
        tokenizer=str(folder / "words"),
        vision=ClipTokens(config=str(folder / "clip.json"), image_size=side),
        fusion=CoAttentionConfig(width=WIDTH, layers=LAYERS, heads=plain_meter.HEADS, dropout=0.0),
        **fields,
    )
    recipe = world_recipe(folder, folder / "run")
    methods = {"reader": Full(part="text"), "eyes": Full(part="vision")}
    return replace(recipe, model=kind, methods=methods, tasks=tasks)


def converted(recipe: Recipe, file: Path, out: Path) -> CrossModalModel:
    """The model of the checkpoint in float64."""
    save_recipe(recipe, out.with_suffix(".yaml"))
    convert("reference", "--from", file, "--config", out.with_suffix(".yaml"), "--out", out)
    model = load_run(out, torch.float64).model.eval()
    assert isinstance(model, CrossModalModel)
    return model


def questions(num_images: int = 1) -> tuple[Batch, Tensor]:
    """Four texts with pictures, and the pictures' pixels (n, 4, 3, h, w) as METER reads them."""
    ids, mask = plain_meter.texts(2)
    draw = torch.Generator().manual_seed(5)
    size = (4 * num_images, 3, SIDE, SIDE)
    images = torch.randint(256, size, dtype=torch.uint8, generator=draw)
    batch = Batch(
        ids=list("abcd"),
        task_index=torch.zeros(4, dtype=torch.long),
        input_ids=ids,
        attention_mask=mask.bool(),
        labels=None,
        weights=torch.ones(4),
        valid=torch.ones(4).bool(),
        image_index=torch.arange(4 * num_images).view(num_images, 4).T,
        images=images,
    )
    pixels = normalised(images, MEAN, STD).double()
    return batch, pixels.unflatten(0, (num_images, 4))


@recorded("meter_model", "vqa_labels")
@torch.no_grad()
def test_recorded_weights_of_meter_give_their_logits(path: Path, tmp_path: Path) -> None:
    """Those of METER's own code, with what it keeps and never uses."""
    case = RelatedCase(path)
    state = {name: tensor.float() for name, tensor in case.under("weights/").items()}
    torch.save({"state_dict": state}, tmp_path / "vqa.ckpt")
    tasks: dict[str, Task] = {"vqa": VQA(head=replace(MLP, classes=CLASSES))}
    model = converted(meter_recipe(tmp_path, tasks), tmp_path / "vqa.ckpt", tmp_path / "out")
    batch, _ = questions()
    mask = case["text_masks"].bool()
    rows = replace(batch, input_ids=case["text_ids"], attention_mask=mask)
    images = model.vision.features(case["image_0"])[:, None]
    text = model.read_texts(rows).states
    assert text is not None
    _, pooled = model.join(text, mask, images, torch.ones(images.shape[:3]).bool())
    assert (model.heads["vqa"](pooled) - case["out/vqa_logits"]).abs().max() < 1e-9


@torch.no_grad()
def test_pre_training_becomes_the_start_of_nlvr2(tmp_path: Path) -> None:
    """A pre-trained model opens with its own tasks; a run that begins with it has a second picture,
    which looks like the first, and larger pictures."""
    file = tmp_path / "pretrain.ckpt"
    weights = checkpoint(file, PRETRAINED)
    tasks: dict[str, Task] = {"matching": Matching(head=MATCHING), "words": MaskedWords()}
    recipe = meter_recipe(tmp_path, tasks, masked_words=True)
    model = converted(recipe, file, tmp_path / "out")
    batch, pixels = questions()
    pairs = plain_meter.pair(weights, batch.input_ids, batch.attention_mask.long(), pixels[0])
    scores = plain_meter.linear(weights, "itm_score.fc", pairs)
    assert (model.heads["matching"](model.first_states(batch)) - scores).abs().max() < 1e-9
    larger = meter_recipe(
        tmp_path, {"nlvr2": NLVR2(head=replace(MLP, classes=NLVR2.labels))}, 12, num_images=2
    )
    larger = replace(larger, start=str(tmp_path / "out"))
    begun = built(larger)
    transfer = Transfer.of(larger)
    assert transfer is not None
    said = transfer.fill(begun)
    assert any("drawn, since" in line and "heads" in line for line in said)
    tables = "backbone.fusion.types.weight", "vision.net.embeddings.position_embedding.weight"
    (line,) = (line for line in said if line.startswith("start: resized: "))
    assert all(table in line for table in tables)
    assert isinstance(begun, CrossModalModel)
    types, theirs = begun.backbone.fusion.types.weight, weights["token_type_embeddings.weight"]
    assert torch.equal(types, theirs[[0, 1, 1]].float())
    table = begun.get_parameter("vision.net.embeddings.position_embedding.weight")
    expected = resized_positions(weights["vit_model.visual.positional_embedding"].float(), 3)
    assert torch.equal(table, expected)


@torch.no_grad()
@pytest.mark.parametrize("is_tuned", [False, True])
def test_retrieval_begins_as_matching(is_tuned: bool, tmp_path: Path) -> None:
    """METER ranks by its matching head's second row, and then by what has become of it."""
    file = tmp_path / "irtr.ckpt"
    heads = {f"itm_score.fc.{name}": shape for name, shape in SCORE.items()}
    if is_tuned:
        heads |= {"rank_output.weight": (1, D), "rank_output.bias": (1,)}
    weights = checkpoint(file, heads)
    tasks: dict[str, Task] = {"matching": Retrieval(head=MATCHING)}
    model = converted(meter_recipe(tmp_path, tasks), file, tmp_path / "out")
    batch, pixels = questions()
    pairs = plain_meter.pair(weights, batch.input_ids, batch.attention_mask.long(), pixels[0])
    name = "rank_output" if is_tuned else "itm_score.fc"
    expected = plain_meter.linear(weights, name, pairs)[:, -1]
    texts = model.read_texts(batch)
    for number in range(4):
        picture = model.read_picture(batch.select(torch.tensor([number])))
        found = model.pair_scores(texts, picture)[number]
        assert abs(float(found - expected[number])) < 1e-5  # scores are kept in float32
    convert("reference", "--run", tmp_path / "out", "--out", tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)["state_dict"]
    assert torch.equal(back["rank_output.weight"][0], weights[f"{name}.weight"][-1].float())


@torch.no_grad()
def test_entailments_classes_are_found_by_name(tmp_path: Path) -> None:
    """METER's write_snli.py numbers contradiction 0, neutral 1, entailment 2."""
    file = tmp_path / "snli.ckpt"
    weights = checkpoint(file, plain_meter.mlp_shapes("snli_classifier", D, D, 3))
    tasks: dict[str, Task] = {"snli_ve": Entailment(head=MLP)}
    model = converted(meter_recipe(tmp_path, tasks), file, tmp_path / "out")
    batch, pixels = questions()
    pairs = plain_meter.pair(weights, batch.input_ids, batch.attention_mask.long(), pixels[0])
    expected = plain_meter.classifier(weights, "snli_classifier", pairs)
    order = [("contradiction", "neutral", "entailment").index(name) for name in Entailment.labels]
    found = model.heads["snli_ve"](model.first_states(batch))
    assert (found - expected[:, order]).abs().max() < 1e-9
    convert("reference", "--run", tmp_path / "out", "--out", tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)["state_dict"]
    for name, tensor in back.items():
        assert torch.equal(tensor, weights[name].float()), name


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    file, recipe_file = tmp_path / "vqa.ckpt", tmp_path / "recipe.yaml"
    checkpoint(file, plain_meter.mlp_shapes("vqa_classifier", D, D, len(CLASSES)))
    vqa = VQA(head=replace(MLP, classes=CLASSES))
    recipe = meter_recipe(tmp_path, {"vqa": vqa})
    assert isinstance(recipe.model, CrossModal)
    deeper = replace(recipe.model, fusion=replace(recipe.model.fusion, layers=3))
    wider = replace(vqa, head=replace(vqa.head, classes=("a", "b")))
    entailment = Entailment(head=replace(MLP, classes=Entailment.labels))
    other_order = replace(vqa, head=MLPHead(classes=CLASSES))
    for wrong, complaint in (
        (replace(recipe, model=deeper), "it has no cross_modal_text_layers.2"),
        (replace(recipe, tasks={"vqa": wider}), r"vqa_classifier.3.*\(11, 32\) in .*\(2, 32\)"),
        (replace(recipe, tasks={"see": entailment}), "nothing holds heads.see"),
        (replace(recipe, tasks={"vqa": other_order}), "head: METER has MLPHead with order norm_g"),
        (replace(recipe, methods={"a": Adapter(part="text")}), "methods.a: METER's code has no"),
    ):
        save_recipe(wrong, recipe_file)
        with pytest.raises(ValueError, match=complaint):
            convert("reference", "--from", file, "--config", recipe_file, "--out", tmp_path / "o")
    # Both would be METER's vqa_classifier.
    twice = write_run(replace(recipe, tasks={"vqa": vqa, "more": vqa}))
    with pytest.raises(ValueError, match=r"heads\.more.*one vqa_classifier.*another task's head"):
        convert("reference", "--run", twice, "--out", tmp_path / "o.pth")
    assert not (tmp_path / "o.pth").exists()


def theirs(name: str) -> str:
    """CLIP-ViL's name of a tensor of ours."""
    for original, ours in CLIP_VIL_NAMES.items():
        name = name.replace(ours, original)
    return name


def test_clip_vils_joint_encoder(world: Path, tmp_path: Path) -> None:
    """A pre-trained encoder, whose tables of positions are for more cells, in half precision."""
    recipe = joint_encoder_recipe(world, tmp_path / "run")
    tasks: dict[str, Task] = {"matching": Matching(head=MATCHING)}
    vision = StoredFeatures(dim=8, grid=2)
    recipe = replace(
        recipe,
        model=replace(recipe.model, vision=vision),
        methods={"all": Full()},
        tasks=tasks,
    )
    model = built(recipe)
    shake(model, 3, 0.5)
    state = {theirs(name): tensor.half() for name, tensor in model.unique_state()}
    for leaf in ("weight", "bias"):
        state[f"cls.seq_relationship.{leaf}"] = state.pop(f"heads.matching.{leaf}")
    for axis in "xy":
        name = f"bert.encoder.visual_pos.{axis}_position_embedding.weight"
        state[name] = torch.cat([state[name], torch.ones(3, 8).half()])
    state["cls.predictions.bias"] = torch.zeros(40)
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, tmp_path / "c.pth")
    save_recipe(recipe, tmp_path / "recipe.yaml")
    words = ("--config", tmp_path / "recipe.yaml", "--out", tmp_path / "out")
    convert("reference", "--from", tmp_path / "c.pth", *words)
    found = dict(load_run(tmp_path / "out").model.unique_state())
    for name, tensor in model.unique_state():
        assert torch.equal(found[name], tensor.half().float()), name
    with pytest.raises(ValueError, match="reads CLIP-ViL's checkpoints and writes none"):
        convert("reference", "--run", tmp_path / "out", "--out", tmp_path / "back.pth")
