"""The recipes of VL-Adapter's published rows: the counts are those of the original code."""

from __future__ import annotations

import pytest

from vlds.config import load_recipe
from vlds.models.build import describe
from vlds.resources import find, shipped

COUNTS = {
    "bart_image_full_finetuning": (141_156_864, 100.0),
    "bart_image_single_adapter": (6_081_600, 4.177),
    "bart_image_multiple_adapters": (19_430_400, 12.224),
    "bart_image_half_shared_up": (12_725_760, 8.358),
    "bart_image_half_shared_down": (12_786_240, 8.395),
    "bart_image_hyperformer": (8_579_088, 5.793),
    "bart_image_single_compacter": (3_870_240, 2.699),
    "bart_image_multiple_compacters": (10_584_960, 7.051),
    "bart_image_single_lora": (8_786_688, 5.928),
    "bart_image_multiple_lora": (30_020_352, 17.714),
    "bart_image_single_prompt": (2_843_936, 1.997),
    "bart_image_multiple_prompts": (6_627_200, 4.533),
    "t5_image_full_finetuning": (224_540_160, 100.0),
    "t5_image_single_adapter": (10_480_512, 4.490),
    "t5_image_single_adapter_r4": (19_333_632, 7.979),
    "t5_image_multiple_adapters": (37_178_112, 14.292),
    "t5_image_half_shared_up": (23_768_832, 9.634),
    "t5_image_half_shared_down": (23_889_792, 9.678),
    "t5_image_hyperformer": (8_534_544, 3.687),
    "t5_image_single_compacter": (6_057_792, 2.645),
    "t5_image_multiple_compacters": (19_487_232, 8.038),
    "t5_image_single_lora_r150": (18_170_880, 7.536),
    "t5_image_single_prompt": (2_842_400, 1.259),
    "t5_image_multiple_prompts": (6_625_664, 2.886),
}


@pytest.mark.parametrize("name", COUNTS)
def test_what_trains_is_what_trained_there(name: str) -> None:
    recipe = load_recipe(find(f"recipes/vl_adapter/{name}.yaml"))
    counts = describe(recipe.model, list(recipe.tasks))
    assert (counts.trainable, round(counts.percent, 3)) == COUNTS[name]
    assert recipe.output == f"runs/vl_adapter/{name}"


def test_every_recipe_is_counted() -> None:
    folder = "recipes/vl_adapter/"
    names = {
        n.removeprefix(folder).removesuffix(".yaml") for n in shipped("recipes") if folder in n
    }
    assert names == {*COUNTS, "bart_image", "t5_image"}


@pytest.mark.parametrize("name", COUNTS)
def test_prompts_are_those_of_the_scripts(name: str) -> None:
    """Only the rows that share one set of weights over the tasks tell them the task in words."""
    recipe = load_recipe(find(f"recipes/vl_adapter/{name}.yaml"))
    prompts = [task.prompt for task in recipe.tasks.values()]
    told = ["vqa: ", "gpa: ", "nlvr: ", "caption: "]
    assert prompts == (told if "single" in name else [""] * 4)
