"""The recipes of VL-PET's, LST's and few-shot classifiers' published rows: the counts are those of
the original codes, or the share that the paper prints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vlds.models import DualEncoder
from vlds.models.build import describe
from vlds.models.heads import TextHead
from vlds.recipe.config import Recipe, parse_recipe
from vlds.recipe.paths import read_merged
from vlds.runtime.process import find, shipped

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
    "lst/t5_image": (17_967_384, 7.458),
}
"""Recipe -> trainable weights, and their share of all in percent."""
TOTALS = {"vl_pet/t5_image_large": 240_521_856, "lst/t5_image": 240_926_232}


@pytest.mark.sampled(18)
@pytest.mark.parametrize("name", COUNTS)
def test_what_trains_is_what_trained_there(name: str) -> None:
    recipe = parse_recipe([str(find(f"recipes/{name}.yaml"))])
    counts = describe(recipe.model_setup, list(recipe.tasks))
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
    assert len(published) > 50
    found = {
        name
        for name, tree in names.items()
        if tree.get("optimizer", {}).get("update") == "transformers"
    }
    assert found == published | PRETRAINING | CLIP_VIL | BUILT_ON
