"""The world's recipe with a model of each kind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.toys.causal import causal_recipe
from tests.toys.image_text import save_tiny
from tests.toys.world import world_recipe
from vlds.models import ImageTextToText
from vlds.models.build import build_model
from vlds.models.methods import LoRA
from vlds.models.model import Model
from vlds.recipe.config import Recipe

IMAGE_TYPE = "qwen2_5_vl"
"""Pictures of unlike sizes become unlike numbers of tokens."""
SLOW_KINDS = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("causal", "image_text")]
KINDS = ["joint", *SLOW_KINDS]
"""Where a case of each new kind takes seconds."""
ALL_KINDS = ["joint", "causal", "image_text"]


def built(recipe: Recipe) -> Model:
    """The model of a recipe, in its precision."""
    processor = recipe.model.load_processor()
    return build_model(recipe.model_setup, list(recipe.tasks), recipe.training.dtype, processor)


def kind_recipe(
    kind: str, world: Path, output: Path, stage: int = 2, precision: str = "fp32"
) -> Recipe:
    """Ten steps with dropout and a state after every fifth; vqa is evaluated at the end. The first
    call of a kind writes its model's files into a folder of the world."""
    if kind == "joint":
        return world_recipe(world, output, stage, precision)
    lora = LoRA(rank=2, sharing="multiple", roles=["attn_q", "ffn_out"], train_biases=False)
    if kind == "causal":
        recipe = causal_recipe(world, world, output, stage, precision)
    else:
        folder = world / "image_text"
        if not folder.exists():
            save_tiny(IMAGE_TYPE, folder)
        recipe = world_recipe(world, output, stage, precision)
        recipe = replace(recipe, model=ImageTextToText(path=str(folder)))
    return replace(recipe, methods={"lora": lora})
