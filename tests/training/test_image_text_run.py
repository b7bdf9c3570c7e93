"""Runs of an image-text model: what it sees, and its memory as planned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.toys.image_text import save_tiny
from tests.toys.rank_pool import RankPool
from tests.toys.world import world_recipe
from vlds.models import ImageTextToText
from vlds.models.build import build_model
from vlds.models.methods import Adapter
from vlds.plan import planned
from vlds.recipe.config import Recipe
from vlds.runtime.deepspeed_start import start_ranks
from vlds.schema import Batch
from vlds.training.deepspeed_config import complete_deepspeed_config, cut_batches
from vlds.training.engine import Engine
from vlds.training.optimizer import parameter_groups
from vlds.training.prepare import prepare
from vlds.training.run import open_stream


def recipe_in(folder: Path, world: Path, stage: int = 2) -> Recipe:
    """Two tasks with adapters of their own, on a tiny Qwen2.5-VL."""
    save_tiny("qwen2_5_vl", folder / "tiny")
    recipe = world_recipe(world, folder / "whole", stage)
    return replace(
        recipe,
        model=ImageTextToText(path=str(folder / "tiny")),
        methods={"adapter": Adapter(reduction=4, sharing="multiple")},
    )


def first_batch(recipe: Recipe) -> Batch:
    """What a rank trains on first."""
    ranks = start_ranks(60)
    collator = recipe.model.collator(recipe.model.load_processor())
    stream = open_stream(recipe, ranks, prepare(recipe, ranks, False), collator)
    return next(stream.steps())[0]


def test_blank_pictures_change_no_text(world: Path, ranks1: RankPool, tmp_path: Path) -> None:
    """The control that sees nothing learns from grey pictures of the same sizes."""
    recipe = recipe_in(tmp_path, world)
    blank = replace(recipe, data=replace(recipe.data, blank_images=True))
    (seen,), (unseen,) = (ranks1.run(first_batch, each) for each in (recipe, blank))
    assert torch.equal(seen.input_ids, unseen.input_ids)
    for one, other in zip(seen.media, unseen.media, strict=True):
        assert one["pixel_values"].std(0).max() > 0.05
        assert other["pixel_values"].std(0).max() < 1e-6


def held(recipe: Recipe) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes that this rank holds, and that were planned."""
    ranks = start_ranks(60)
    cut = cut_batches(recipe, ranks.world_size)
    config = complete_deepspeed_config(Path(recipe.training.deepspeed), recipe, cut)
    processor = recipe.model.load_processor()
    model = build_model(recipe.model_setup, list(recipe.tasks), torch.float32, processor)
    groups = parameter_groups(model, recipe)
    plan = planned(model, groups, config["zero_optimization"], ranks.world_size)
    engine = Engine(model, groups, config, ranks=ranks, tasks=list(recipe.tasks.values()))
    sizes = engine.bytes_per_rank()
    engine.close()
    return sizes, {name: getattr(plan, name) for name in sizes}


@pytest.mark.parametrize("stage", [2, 3])
def test_the_plan_is_exact(stage: int, world: Path, ranks2: RankPool, tmp_path: Path) -> None:
    for found, expected in ranks2.run(held, recipe_in(tmp_path, world, stage)):
        assert found == expected
