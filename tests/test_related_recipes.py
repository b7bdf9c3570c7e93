"""The recipes of VL-PET's and LST's published rows: the counts are those of the original codes, or
the share that the paper prints."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vlds.models.build import describe
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
    assert len(published) > 55
    found = {
        name
        for name, tree in names.items()
        if tree.get("optimizer", {}).get("update") == "transformers"
    }
    assert found == published | PRETRAINING | CLIP_VIL | BUILT_ON
