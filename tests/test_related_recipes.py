"""The recipes of VL-PET's, LST's and few-shot classifiers' published rows: the counts are those of
the original codes, or the share that the paper prints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from transformers import CLIPVisionConfig, RobertaConfig

from vlds.models import CrossModal, DualEncoder
from vlds.models.build import ModelSetup, describe
from vlds.models.heads import TextHead
from vlds.models.vision import ClipTokens, Timm
from vlds.recipe.config import Recipe, parse_recipe
from vlds.recipe.paths import read_merged
from vlds.runtime.process import find, shipped
from vlds.tasks import NLVR2, VQA, Entailment, MaskedWords, Matching, Retrieval, Task
from vlds.tasks.class_output import ClassOutput

COUNTS = {
    "vl_pet/bart_image_large": (6_052_416, 4.157),
    "vl_pet/bart_image_middle_x": (4_281_804, 2.977),
    "vl_pet/bart_image_middle_y": (4_281_792, 2.977),
    "vl_pet/bart_image_small": (4_291_020, 2.983),
    "vl_pet/bart_video_large": (4_872_768, 3.374),
    "vl_pet/bart_video_middle_x": (3_102_156, 2.175),
    "vl_pet/bart_video_middle_y": (3_102_144, 2.175),
    "vl_pet/bart_video_small": (3_111_372, 2.181),
    "vl_pet/t5_image_large": (17_582_208, 7.310),
    "vl_pet/t5_image_middle_x": (10_499_736, 4.498),
    "vl_pet/t5_image_middle_y": (10_499_712, 4.498),
    "vl_pet/t5_image_small": (10_518_168, 4.505),
    "vl_pet/bart_image_compacter_large": (None, 3.28),
    "vl_pet/bart_image_compacter_middle_x": (None, 2.07),
    "vl_pet/bart_image_compacter_middle_y": (None, 2.07),
    "vl_pet/bart_image_compacter_small": (None, 2.08),
    "vl_pet/bart_image_bitfit": (1_708_800, 1.211),
    "vl_pet/bart_video_bitfit": (529_152, 0.378),
    "vl_pet/bart_video_single_compacter": (2_690_592, 1.892),
    "lst/t5_image": (17_967_384, 7.458),
    "lst/t5_image_fisher": (17_967_384, 7.458),
    "lst/t5_image_full_finetuning": (224_540_160, 100.0),
}
"""Recipe -> trainable weights, and their share of all in percent."""
TOTALS = {"vl_pet/t5_image_large": 240_521_856, "lst/t5_image": 240_926_232}


@pytest.mark.sampled(23)
@pytest.mark.parametrize("name", COUNTS)
def test_what_trains_is_what_trained_there(name: str) -> None:
    recipe = parse_recipe([str(find(f"recipes/{name}.yaml"))])
    # As in the artifact: nothing has written the file of importance that LST begins with.
    methods = {key: method.in_artifact() for key, method in recipe.methods.items()}
    counts = describe(replace(recipe.model_setup, methods=methods), list(recipe.tasks))
    trainable, percent = COUNTS[name]
    digits = 2 if trainable is None else 3
    assert trainable in (None, counts.trainable)
    assert round(counts.percent, digits) == percent
    assert counts.total == TOTALS.get(name, counts.total)
    assert recipe.output == f"runs/{name}"
    assert recipe.optimizer.weight_decay_groups == "vl_adapter"


def test_every_recipe_is_counted() -> None:
    folders = ("recipes/vl_pet/", "recipes/lst/")
    files = [name for name in shipped("recipes") if name.startswith(folders)]
    names = {name.removeprefix("recipes/").removesuffix(".yaml") for name in files}
    assert names == COUNTS.keys()


CLIP_TEXT = {
    "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 8,
}  # fmt: skip
CLIPS: dict[str, tuple[dict[str, Any], int]] = {
    "models/clip-rn50": (
        {
            "model_type": "clip_resnet",
            "projection_dim": 1024,
            "vision_config": {"width": 64, "layers": [3, 4, 6, 3], "image_size": 224},
        },
        102_007_137,
    ),
    "openai/clip-vit-base-patch16": (
        {"model_type": "clip", "projection_dim": 512, "vision_config": {"patch_size": 16}},
        149_620_737,
    ),
}
"""Model of a recipe -> its sizes, and its weights as OpenAI's code counts them."""
FEW_SHOT = {
    # Keys: shots x classes x width.
    "tip_adapter": (1000, 16 * 1000 * 1024),
    # Three positive residuals and two negative ones, classes x width each.
    "simnl": (1000, 5 * 1000 * 1024),
    # Prompts of nine layers with their maps, and two adapters.
    "apollo": (1000, 3_555_072 + 2 * 3_152_384),
    # Twelve layers with two adapters of width 256, and the head.
    "mimi": (102, 12 * 2 * (2 * 768 * 256 + 256 + 768) + 102 * 513),
}
"""Recipe -> classes, and trainable weights."""


@pytest.mark.parametrize("name", FEW_SHOT)
def test_few_shot_classifiers_at_full_size(name: str, tmp_path: Path) -> None:
    recipe = parse_recipe([str(find(f"recipes/related/{name}.yaml"))])
    (task,) = recipe.tasks.values()
    num_classes, trainable = FEW_SHOT[name]
    assert task.head is not None
    head = replace(task.head, classes=tuple(f"class {n}" for n in range(num_classes)))
    if isinstance(head, TextHead):  # their file is not ours
        head = replace(head, descriptions=None)
    sizes, total = CLIPS[recipe.model.sources["backbone"]]
    config = tmp_path / "config.json"
    config.write_text(json.dumps(sizes | {"text_config": CLIP_TEXT}))
    model = DualEncoder(config=str(config), tokenizer="of/nobody")
    whole = replace(recipe, model=model, tasks={"classes": replace(task, head=head)})
    counts = describe(whole.model_setup, list(whole.tasks))
    assert counts.trainable == trainable
    assert counts.total - counts.trainable == total


PRETRAINING = {f"pretrain/{name}" for name in ("vl_t5", "vl_bart", "vl_bart_clip")}
CLIP_VIL = {f"related/clip_vil_{data}" for data in ("vqa", "gqa", "snli_ve")}


class Meter(NamedTuple):
    """What METER's code says of a task (its config.py)."""

    task: type[Task]
    name: str
    batch: int
    rates: tuple[float, float, float]
    """Of encoders, streams and heads."""
    pixels: int
    epochs: int
    words: int
    """Tokens of a text."""
    head: int
    """Weights of the head."""


METER = {
    "vqa": Meter(VQA, "vqa", 512, (5e-6, 2.5e-5, 2.5e-4), 576, 10, 50, 7_173_177),
    "nlvr2": Meter(NLVR2, "nlvr2", 256, (1e-5, 5e-5, 1e-4), 288, 10, 50, 4_726_274),
    "snli_ve": Meter(Entailment, "snli_ve", 64, (2e-6, 1e-5, 2e-5), 384, 5, 50, 2_368_515),
    "flickr30k": Meter(Retrieval, "matching", 512, (5e-6, 2.5e-5, 5e-6), 384, 10, 40, 3074),
    "coco": Meter(Retrieval, "matching", 512, (5e-6, 2.5e-5, 5e-6), 384, 10, 40, 3074),
}


def meter_sized(recipe: Recipe, folder: Path) -> CrossModal:
    """The kind with the sizes of RoBERTa and CLIP that the recipe names, which lie on the hub."""
    kind = recipe.model
    assert isinstance(kind, CrossModal)
    assert isinstance(kind.vision, ClipTokens)
    assert kind.path == "FacebookAI/roberta-base"
    assert kind.vision.path == "openai/clip-vit-base-patch16"
    text = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1)
    text.save_pretrained(folder / "text")
    CLIPVisionConfig(patch_size=16).save_pretrained(folder / "clip")
    vision = replace(kind.vision, path=None, config=str(folder / "clip" / "config.json"))
    return replace(kind, path=None, config=str(folder / "text" / "config.json"), vision=vision)


@pytest.mark.parametrize("name", METER)
def test_meters_recipes(name: str, tmp_path: Path) -> None:
    published = METER[name]
    recipe = parse_recipe([str(find(f"recipes/related/meter_{name}.yaml"))])
    (task,) = recipe.tasks.values()
    assert (type(task), *recipe.tasks) == (published.task, published.name)
    assert task.prompt == ""
    assert task.max_prompt_tokens == published.words
    optimizer = recipe.optimizer
    rates = (
        optimizer.learning_rate, optimizer.connector_learning_rate, optimizer.heads_learning_rate
    )  # fmt: skip
    assert rates == published.rates
    assert (optimizer.betas, optimizer.eps, optimizer.clip_norm) == ([0.9, 0.98], 1e-8, 0.0)
    assert (optimizer.warmup_ratio, optimizer.weight_decay) == (0.1, 0.01)
    assert recipe.data.global_batch_size == published.batch
    assert (recipe.training.epochs, recipe.training.steps) == (published.epochs, None)
    assert recipe.start == "runs/related/meter_pretraining"
    kind = meter_sized(recipe, tmp_path)
    image = kind.image
    assert image is not None
    assert (image.height, kind.num_images) == (published.pixels, 1 + (name == "nlvr2"))
    assert task.head is not None
    classes = tuple(f"answer {n}" for n in range(3129)) if task.labels == () else task.labels
    outputs = {published.name: ClassOutput(replace(task.head, classes=classes), "cross_entropy")}
    setup = ModelSetup(kind=kind, methods=recipe.methods, outputs=outputs)
    parts = describe(setup, list(recipe.tasks)).by_part
    assert parts["heads"].trainable == published.head
    # RoBERTa without a pooler; co-attention with its layers, projections, types and poolers.
    assert parts["reader"].trainable == 124_055_040
    types = 3 if name == "nlvr2" else 2
    assert parts["fusion"].trainable == 113_421_312 + 4 * (768 * 768 + 768) + types * 768
    # Eleven of ViT-B/16's blocks, its two norms, patches, class token and positions.
    block = 12 * 768 * 768 + 13 * 768
    tokens = 1 + (published.pixels // 16) ** 2
    assert parts["eyes"].trainable == 11 * block + 4 * 768 + 768 * 768 + 768 * (1 + tokens)


def test_meters_tasks_begin_with_its_pre_training(tmp_path: Path) -> None:
    recipe = parse_recipe([str(find("recipes/related/meter_pretraining.yaml"))])
    assert {name: type(task) for name, task in recipe.tasks.items()} == {
        "matching": Matching, "words": MaskedWords,
    }  # fmt: skip
    assert recipe.output == "runs/related/meter_pretraining"
    rates = recipe.optimizer.connector_learning_rate, recipe.optimizer.heads_learning_rate
    assert (recipe.optimizer.learning_rate, *rates) == (1e-5, 5e-5, 5e-5)
    assert meter_sized(recipe, tmp_path).masked_words


def test_clip_vils_start_has_a_vision_encoder_of_its_own() -> None:
    """Its file holds one that pre-training has changed, so that none is named."""
    recipe = parse_recipe([str(find("recipes/related/clip_vil_pretraining.yaml"))])
    later = parse_recipe([str(find("recipes/related/clip_vil_vqa.yaml"))])
    assert isinstance(recipe.encoder, Timm)
    assert recipe.encoder == replace(later.encoder, pretrained=False)
    assert "vision encoder" not in recipe.model.sources
    assert [type(task) for task in recipe.tasks.values()] == [Matching]


BUILT_ON = {
    *(f"related/bart_image_{way}_adapter" for way in ("meta", "sim")),
    "related/bart_image_mixture",
    "related/bart_image_task_adapters",
    "related/t5_image_hyper_pelt",
}
"""Other systems' methods in place of VL-Adapter's, trained as it was."""


@pytest.mark.slow
def test_whose_adamw_moves_the_weights() -> None:
    """Transformers', as in the original codes, in all their recipes and what builds on them."""
    names = {
        name.removeprefix("recipes/").removesuffix(".yaml"): read_merged(find(name), Recipe)
        for name in shipped("recipes")
        if name.endswith(".yaml")
    }
    published = {name for name in names if name.startswith(("vl_adapter/", "vl_pet/", "lst/"))}
    assert len(published) > 55
    found = {
        name
        for name, tree in names.items()
        if tree.get("optimizer", {}).get("update") == "transformers"
    }
    meter = {f"related/meter_{name}" for name in (*METER, "pretraining")}
    assert found == published | PRETRAINING | CLIP_VIL | BUILT_ON | meter
