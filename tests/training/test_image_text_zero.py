"""Image-text models under ZeRO: ranks with unlike rows compute what one rank computes, in the
memory that was planned."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toys.image_text import FAST_TYPES, save_tiny
from tests.toys.image_text.claims import IN_ZERO3
from tests.toys.image_text.clips import mixed
from tests.toys.image_text.rows import images, tiny
from tests.toys.rank_pool import RankPool
from tests.toys.world import world_recipe
from vlds.models import ImageTextToText
from vlds.models.build import build_model
from vlds.models.kinds.media import READ_CLIPS
from vlds.models.kinds.picture_forms import UNPARTITIONED
from vlds.models.methods import Adapter, Full, HyperPELT, LoRA, Method, Mixture, Peft, SimAdapter
from vlds.models.partitioned import partitioned_loading
from vlds.recipe.config import DataConfig, OptimizerConfig, Recipe, TrainingConfig
from vlds.runtime.deepspeed_start import start_ranks
from vlds.schema import Batch
from vlds.tasks import VQA, Caption
from vlds.training.deepspeed_config import complete_deepspeed_config, cut_batches
from vlds.training.engine import Engine
from vlds.training.optimizer import parameter_groups, set_learning_rate
from vlds.training.prepare import prepare
from vlds.training.run import open_stream

STEPS = 2


def of_peft(kind: str, **settings: Any) -> Peft:
    return Peft(type=kind, settings=settings, roles=["attn_q", "attn_v"])


METHODS: dict[str, dict[str, Method]] = {
    "lora": {"words": LoRA(rank=2, dropout=0.0, train_biases=False)},
    "adapter": {"words": Adapter(reduction=4, sharing="multiple")},
    "full": {"words": Full()},
    "dora": {"words": of_peft("LORA", r=2, lora_alpha=2, use_dora=True)},
    "adalora": {"words": of_peft("ADALORA", init_r=3, target_r=2, lora_alpha=3)},
}
RELATED: dict[str, dict[str, Method]] = {
    "mixture": {"words": Mixture(of=Adapter(reduction=4, sharing="half_shared_up"))},
    "hyper_pelt": {"words": HyperPELT(reduction=4, prefix_length=2, visual=False)},
    "sim_adapter": {"words": SimAdapter(adapters={"vqa": Adapter(), "a": Adapter(reduction=4)})},
}
METHODS |= RELATED
CASES = [
    (model_type, method, stage)
    for model_type, method, stage in product(FAST_TYPES, METHODS, (2, 3))
    if (method, stage) != ("adalora", 3)  # refused
    if method not in RELATED or model_type in ("qwen2_5_vl", "llava", "florence2")
]
GROUPS = [IN_ZERO3[start : start + 8] for start in range(0, len(IN_ZERO3), 8)]
"""Types that one job of the ranks goes through."""
Reports = list[tuple[float, float]]
"""Losses and gradient norms of steps."""


def recipe_of(model_type: str, method: str, stage: int, folder: Path) -> Recipe:
    file = folder / f"zero{stage}.json"
    zero: dict[str, Any] = {"stage": stage}
    if stage == 3:
        zero["stage3_param_persistence_threshold"] = 0  # else small weights are never partitioned
    file.write_text(json.dumps({"zero_optimization": zero}), encoding="utf-8")
    return Recipe(
        output=str(folder / "run"),
        model=tiny(model_type).kind,
        methods=METHODS[method],
        tasks={"vqa": VQA(), "caption": Caption()},
        data=DataConfig(global_batch_size=3),
        optimizer=OptimizerConfig(learning_rate=1e-2, eps=1e-4),
        training=TrainingConfig(precision="fp32", deepspeed=str(file)),
    )


def start(
    recipe: Recipe, model_type: str, shares: list[list[int]], clips: bool = False
) -> tuple[Engine, Batch]:
    """An engine around the model, and this rank's share of three rows; or of those with `clips`."""
    ranks = start_ranks(60)
    cut = cut_batches(recipe, ranks.world_size)
    config = complete_deepspeed_config(Path(recipe.training.deepspeed), recipe, cut)
    processor = recipe.model.load_processor()
    with partitioned_loading(config):
        model = build_model(recipe.model_setup, list(recipe.tasks), torch.float32, processor)
    engine = Engine(
        model,
        parameter_groups(model, recipe),
        config,
        ranks=ranks,
        tasks=list(recipe.tasks.values()),
        eps=recipe.optimizer.eps,
        num_steps=STEPS,
    )
    set_learning_rate(engine.parameter_groups, 1.0)
    source = replace(tiny(model_type), kind=recipe.model, processor=processor)
    model.shows_clips = clips
    rows, pictures = mixed(source) if clips else (source.rows(), images())
    share = [rows[index] for index in shares[ranks.global_rank]]
    return engine, source.collator(share, pictures, evaluation=False)


def steps(recipe: Recipe, model_type: str, shares: list[list[int]], clips: bool = False) -> Reports:
    """Loss on this rank, and gradient norm, of some steps on its share of three rows; or of those
    with `clips`."""
    engine, batch = start(recipe, model_type, shares, clips)
    reports = [engine.step([batch]) for _ in range(STEPS)]
    engine.close()
    return [(float(r.task_losses.sum()), r.gradient_norm) for r in reports]


def steps_of_all(recipes: dict[str, Recipe], shares: list[list[int]]) -> dict[str, Reports]:
    """`steps` of each type."""
    return {name: steps(recipe, name, shares) for name, recipe in recipes.items()}


def resumed(recipes: dict[str, Recipe], shares: list[list[int]]) -> dict[str, bool]:
    """Type -> whether a new engine with the state after the first step makes the same second one,
    bit for bit."""
    same: dict[str, bool] = {}
    for name, recipe in recipes.items():
        engine, batch = start(recipe, name, shares)
        engine.step([batch])
        states: list[Any] = [engine.export()]
        torch.distributed.broadcast_object_list(states)
        updates = engine.task_updates
        whole = engine.step([batch])
        expected = engine.export()
        engine.close()
        engine, batch = start(replace(recipe, seed=recipe.seed + 1), name, shares)
        engine.restore(states[0], 1, 0, updates)
        again = engine.step([batch])
        found = engine.export()
        engine.close()
        same[name] = torch.equal(whole.task_losses, again.task_losses)
        if found is not None and expected is not None:
            same[name] &= found.keys() == expected.keys() and all(
                torch.equal(tensor, expected[weight][key])
                for weight, tensors in found.items()
                for key, tensor in tensors.items()
            )
    return same


def assert_alike(alone: Reports, first: Reports, second: Reports, name: str) -> None:
    """Two ranks together have computed what one has alone."""
    for (loss, norm), (one, one_norm), (other, other_norm) in zip(
        alone, first, second, strict=True
    ):
        assert one + other == pytest.approx(loss, rel=1e-5), name
        assert one_norm == other_norm, name
        assert one_norm == pytest.approx(norm, rel=1e-4), name
    assert alone[0] != alone[1], f"the step has moved the weights of {name}"


@pytest.mark.slow
@pytest.mark.parametrize(("model_type", "method", "stage"), CASES)
def test_unlike_rows_on_two_ranks(
    model_type: str, method: str, stage: int, ranks1: RankPool, ranks2: RankPool, tmp_path: Path
) -> None:
    """One rank has rows with one and two pictures, the other a text without any."""
    recipe = recipe_of(model_type, method, stage, tmp_path)
    (alone,) = ranks1.run(steps, recipe, model_type, [[0, 1, 2]])
    first, second = ranks2.run(steps, recipe, model_type, [[0, 1], [2]])
    assert_alike(alone, first, second, model_type)


CLIP_CASES = [
    (t, stage, [[0, 1], [other]]) for t in READ_CLIPS for stage, other in ((3, 3), (3, 2), (2, 3))
]


@pytest.mark.slow
@pytest.mark.parametrize(("model_type", "stage", "shares"), CLIP_CASES)
def test_clips_on_one_of_two_ranks(
    model_type: str,
    stage: int,
    shares: list[list[int]],
    ranks1: RankPool,
    ranks2: RankPool,
    tmp_path: Path,
) -> None:
    """One rank has clips of unlike lengths, the other a picture or a text."""
    recipe = recipe_of(model_type, "lora", stage, tmp_path)
    (alone,) = ranks1.run(steps, recipe, model_type, [[*shares[0], *shares[1]]], True)
    first, second = ranks2.run(steps, recipe, model_type, shares, True)
    assert_alike(alone, first, second, model_type)


@pytest.mark.slow
@pytest.mark.parametrize("types", GROUPS, ids=lambda types: f"{types[0]} to {types[-1]}")
def test_every_type_on_two_ranks(
    types: Sequence[str], ranks1: RankPool, ranks2: RankPool, tmp_path: Path
) -> None:
    """As above, under ZeRO-3; and steps behind a state that is put back are those of the run that
    was not interrupted."""
    recipes = {}
    for name in types:
        (folder := tmp_path / name).mkdir()
        recipes[name] = recipe_of(name, "lora", 3, folder)
    (alone,) = ranks1.run(steps_of_all, recipes, [[0, 1, 2]], timeout=600)
    first, second = ranks2.run(steps_of_all, recipes, [[0, 1], [2]], timeout=600)
    for name in types:
        assert_alike(alone[name], first[name], second[name], name)
    whole = dict.fromkeys(types, True)
    assert ranks2.run(resumed, recipes, [[0, 1], [2]], timeout=600) == [whole, whole]


@pytest.mark.parametrize("model_type", UNPARTITIONED)
def test_types_that_are_not_partitioned_are_refused(model_type: str, tmp_path: Path) -> None:
    """Before anything is loaded."""
    recipe = recipe_of(model_type, "lora", 3, tmp_path)
    message = rf"stage = 3, which cannot partition {model_type} models, whose .*; set 2"
    with pytest.raises(ValueError, match=message):
        complete_deepspeed_config(Path(recipe.training.deepspeed), recipe, cut_batches(recipe, 2))
    recipe = recipe_of(model_type, "lora", 2, tmp_path)
    complete_deepspeed_config(Path(recipe.training.deepspeed), recipe, cut_batches(recipe, 2))


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
