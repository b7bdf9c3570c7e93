"""Runs that begin with meta-learning: it happens once, before the first step, and changes nothing
else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.toys.dual import class_recipe, text_recipe
from tests.toys.files import read_lines
from tests.toys.kinds import kind_recipe
from tests.toys.rank_jobs import run_and_print, run_recipe
from tests.toys.rank_pool import RankPool
from tests.toys.recipes import recipe_complaint, train_words
from tests.toys.resumed_runs import assert_same_run, half_a_run
from tests.toys.world import world_recipe, write_world
from vlds.artifact import load_run
from vlds.cli.check_recipe import check_recipe
from vlds.models.methods import APoLLo, Full, Method, SimNL, TipAdapter
from vlds.plan import Machine, forecasts_of, page, plan_recipe, tree
from vlds.recipe.config import MetaConfig, Recipe, load_recipe

META = MetaConfig(steps=3, learning_rate=0.01)
SAID = "meta-learning "
FEW_SHOT: dict[str, Method] = {
    "apollo": APoLLo(depth=2, heads=3, length=2, views=2, dropout=0.0),
    "simnl": SimNL(views=3),
    "tip_adapter": TipAdapter(views=0),
}


def with_meta(recipe: Recipe, meta: MetaConfig | None = META) -> Recipe:
    return replace(recipe, meta=meta)


def meta_lines(run: Path) -> list[dict[str, Any]]:
    """What the metrics keep of meta-learning."""
    return [line["meta"] for line in read_lines(run / "metrics.jsonl") if "meta" in line]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "stage"), [("joint", 2), ("joint", 3), ("causal", 2), ("image_text", 2)]
)
def test_it_happens_once_and_a_resumed_run_goes_on(
    kind: str, stage: int, world: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    whole, half = tmp_path / "whole", tmp_path / "half"
    recipe = with_meta(kind_recipe(kind, world, whole, stage))
    (code, text), (other, _) = ranks2.run(run_and_print, recipe, timeout=180)
    assert (code, other) == (0, 0)
    assert [line.split()[1] for line in text.splitlines() if line.startswith(SAID)] == [
        "1/3", "2/3", "3/3",
    ]  # fmt: skip
    (kept,) = meta_lines(whole)
    assert (kept["steps"], kept["skipped"]) == (3, 0)
    assert kept["loss_1"].keys() == kept["loss_2"].keys() == recipe.tasks.keys()

    half_a_run(whole, half)
    resumed = replace(recipe, output=str(half))
    (code, text), _ = ranks2.run(run_and_print, resumed, True, timeout=180)
    assert code == 0
    assert SAID not in text
    assert_same_run(half, whole)
    assert meta_lines(half) == [kept]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "precision"), [(2, "fp32"), (3, "bf16")])
def test_without_an_outer_rate_the_run_is_the_ordinary_one(
    stage: int, precision: str, world: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    """Weights, order of examples, count of steps, and statistics of an encoder that trains."""
    plain = world_recipe(world, tmp_path / "plain", stage, precision)
    encoder = {"encoder": Full(part="vision", learning_rate=1e-3)}
    plain = replace(plain, methods=plain.methods | encoder)
    still = replace(plain, output=str(tmp_path / "still"))
    still = with_meta(still, replace(META, outer_rate=0.0))
    for recipe in (plain, still):
        assert ranks2.run(run_recipe, recipe, timeout=180) == [0, 0]
    assert_same_run(tmp_path / "still", tmp_path / "plain")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "size", "tolerance"),
    [
        ("example", 8, 1e-4),
        ("global_batch", 8, 1e-4),
        ("pairs", 3, 1e-3),
        *((name, 8, 1e-3) for name in FEW_SHOT),
    ],
)
def test_ranks_and_micro_batches_change_nothing(
    what: Any, size: int, tolerance: float, ranks1: RankPool, ranks2: RankPool, tmp_path: Path
) -> None:
    """With global batches of one task, an outer step reads one for each task. Losses of pairs
    compare those of all ranks, also of one without a pair of the half."""
    write_world(tmp_path / "world")
    found = []
    for pool, name in ((ranks1, "one"), (ranks2, "two")):
        places = tmp_path / "world", tmp_path / name
        if what in FEW_SHOT:
            recipe = class_recipe(*places, {what: FEW_SHOT[what]})
        elif what == "pairs":
            recipe = text_recipe(*places)
        else:
            recipe = world_recipe(*places)
            cut = {"unit": what, "micro_batch_size": 1 if name == "two" else None}
            recipe = replace(recipe, data=replace(recipe.data, **cut))
        recipe = replace(recipe, data=replace(recipe.data, global_batch_size=size))
        recipe = replace(recipe, training=replace(recipe.training, steps=1, log_every=4))
        recipe = with_meta(recipe, replace(META, steps=4))
        assert pool.run(run_recipe, recipe, timeout=120) == [0] * pool.world_size
        found += meta_lines(tmp_path / name)
    one, two = found
    for name in ("loss_1", "loss_2"):
        assert one[name].keys() == recipe.tasks.keys()
        assert two[name] == pytest.approx(one[name], rel=tolerance)


def test_an_artifact_opens_without_it(world: Path, ranks1: RankPool, tmp_path: Path) -> None:
    recipe = with_meta(world_recipe(world, tmp_path / "run"))
    recipe = replace(recipe, training=replace(recipe.training, steps=1))
    assert ranks1.run(run_recipe, recipe, timeout=120) == [0]
    loaded = load_run(tmp_path / "run")
    assert loaded.recipe.meta == META
    assert check_recipe(train_words(replace(recipe, output=str(tmp_path / "new"))), 2) == 0


def test_batches_of_one_example_are_refused(world: Path, tmp_path: Path) -> None:
    words = train_words(with_meta(world_recipe(world, tmp_path / "run")))
    assert load_recipe(Path(words[-1])).meta == META
    said = recipe_complaint(*words[1:], "--data.global_batch_size", "1")
    assert said == (
        "meta: it halves each task's examples in a batch, but data.global_batch_size is 1; give 2 "
        "or more, or leave meta out"
    )


def test_a_plan_says_how_long_it_takes(world: Path, tmp_path: Path) -> None:
    plain = world_recipe(world, tmp_path / "run")
    machine = Machine.given(memory=None, tflops="1", bandwidth="1", link=None)
    ((plan, forecast),) = forecasts_of(plain, plan_recipe(plain, [1]), on_gpu=True)
    seconds = tree(plan, plain, forecast, machine)["seconds"]
    assert seconds["meta"] == 0
    assert "eta-learning" not in "".join(page(plan, plain, forecast, machine))
    recipe = with_meta(plain, MetaConfig(steps=10_000))
    long = tree(plan, recipe, forecast, machine)["seconds"]
    assert long["meta"] == pytest.approx(10_000 * (seconds["products"] + seconds["others"]))
    assert long["step"] == seconds["step"]
    *_, text = page(plan, recipe, forecast, machine)
    assert "Meta-learning before takes at least " in text.replace("\n", " ")
