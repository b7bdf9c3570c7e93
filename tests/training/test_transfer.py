"""Runs that begin with another run's weights: what comes over, what is told, what is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.toys.cross_modal import cross_modal_recipe
from tests.toys.dual import class_recipe
from tests.toys.image_text import save_tiny
from tests.toys.joint_encoder import joint_encoder_recipe
from tests.toys.kinds import IMAGE_TYPE, built, kind_recipe
from tests.toys.rank_jobs import run_recipe
from tests.toys.rank_pool import RankPool
from tests.toys.recipes import with_model, with_task
from tests.toys.resumed_runs import check_resume
from tests.toys.trained_runs import (
    assert_same,
    built_run,
    convert,
    recipe_with,
    state_of,
    write_run,
)
from tests.toys.world import world_recipe
from vlds.artifact import own_tensors, read_recipe, save_artifact
from vlds.models.heads import MLPHead
from vlds.models.methods import Adapter, Full, LoRA, Shrinking, SimAdapter, SimNL, TipAdapter
from vlds.recipe.config import AlignmentConfig, Recipe
from vlds.training.transfer import Transfer


def begun(recipe: Recipe) -> tuple[dict[str, Tensor], list[str], Any]:
    """All tensors of a recipe's model at its start, what is said of them, and the model."""
    model, transfer = built(recipe), Transfer.of(recipe)
    assert transfer is not None
    lines = transfer.fill(model)
    return {name: t.detach().clone() for name, t in model.unique_state()}, lines, model


@pytest.mark.parametrize("name", ["Adapter", "Hyperformer", "Compacter", "PromptTuning"])
def test_a_run_begins_where_another_ended(name: str, world: Path, tmp_path: Path) -> None:
    recipe = recipe_with("T5", name, world, tmp_path / "first")
    first = write_run(recipe)
    # The method has another name; its class finds it.
    second = replace(recipe, methods={"mine": recipe.methods["method"]}, start=str(first))
    tensors, lines, _ = begun(second)
    assert_same({n.replace(".mine.", ".method."): t for n, t in tensors.items()}, state_of(first))
    assert len(lines) == 1  # nothing is drawn, nothing left over


def test_tasks_are_found_by_their_names(world: Path, tmp_path: Path) -> None:
    recipe = recipe_with("T5", "Adapter", world, tmp_path / "first")
    recipe = replace(recipe, methods={"a": Adapter(reduction=4, sharing="multiple")})
    first, (vqa, caption) = write_run(recipe), recipe.tasks.values()
    there = state_of(first)
    tasks = {"new": vqa, "caption": caption, "vqa": vqa}
    here, lines, _ = begun(replace(recipe, tasks=tasks, start=str(first)))
    assert lines[-1].endswith(" has no such task: new")
    names = [name for name in here if name.endswith("a.down_weight")]
    assert names
    for name in names:
        assert here[name][2].equal(there[name][0])
        assert here[name][1].equal(there[name][1])
        assert not any(here[name][0].equal(row) for row in there[name])
    # A single task begins with its own slice, and what tasks have shared each begins with.
    one, lines, _ = begun(replace(recipe, tasks={"caption": caption}, start=str(first)))
    assert lines[-1] == f"start: left over in {first}: its tasks vqa"
    assert all(one[name][0].equal(there[name][1]) for name in names)
    convert(
        "merge", "--how", "take", "--run", first, "--task", "caption", "--out", tmp_path / "one"
    )
    each, _, _ = begun(replace(recipe, start=str(tmp_path / "one")))
    assert all(row.equal(there[name][1]) for name in names for row in each[name])
    with pytest.raises(ValueError, match=r"each task has its own .*--task vqa"):
        begun(replace(recipe, methods={"a": Adapter(reduction=4)}, start=str(first)))


def test_a_second_stage_keeps_what_the_first_has_trained(world: Path, tmp_path: Path) -> None:
    recipe = world_recipe(world, tmp_path / "first", 2)
    first = write_run(replace(recipe, methods={"all": Full()}))
    second = with_model(
        replace(recipe, methods={"lora": LoRA(rank=2, train_biases=False)}, start=str(first)),
        train_norms=False,
    )
    tensors, lines, model = begun(second)
    there = state_of(first)
    assert all(tensors[name].equal(there[name]) for name in there)
    assert re.match("start: drawn, since .* has none: lora ", lines[1])
    # The frozen backbone is not the source's now: the artifact holds it.
    kept = own_tensors(model)
    assert there.keys() <= kept.keys()
    folder = write_run(replace(second, output=str(tmp_path / "second"), start=None))
    assert set(state_of(folder)) == tensors.keys()


def test_what_does_not_fit_is_refused(world: Path, tmp_path: Path) -> None:
    recipe = recipe_with("T5", "Adapter", world, tmp_path / "first")
    first = write_run(recipe)
    wide = replace(recipe, methods={"method": Adapter(reduction=2)}, start=str(first))
    with pytest.raises(ValueError, match=r"start: .*down_weight is .* and here .* size"):
        begun(wide)
    run, other = built_run(recipe), tmp_path / "other"
    save_artifact(other, {"x": torch.ones(1)}, recipe, run.processor)
    with pytest.raises(ValueError, match=r"no weight of .* has a place"):
        begun(replace(recipe, start=str(other)))
    with pytest.raises(ValueError, match=r"start: .*no such folder"):
        Transfer.of(replace(recipe, start=str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match=r"start: got .*, and alignment"):
        replace(recipe, start="a", alignment=AlignmentConfig(data="b"))


def test_heads_know_their_classes(world: Path, tmp_path: Path) -> None:
    recipe = joint_encoder_recipe(world, tmp_path / "first")
    first = write_run(recipe)
    classes = recipe.tasks["vqa"].head.names
    again = replace(recipe, start=str(first))
    tensors, _, _ = begun(again)
    assert tensors["heads.vqa.3.weight"].equal(state_of(first)["heads.vqa.3.weight"])
    # As many classes in another order, and fewer of them.
    for others in (classes[::-1], classes[:-1]):
        other = with_task(again, "vqa", head=MLPHead(classes=others))
        with pytest.raises(
            ValueError, match=r"heads\.vqa belong to .* class \d+ is '.*' there and"
        ):
            begun(other)
    # With another name, the task's head is drawn.
    _, lines, _ = begun(replace(again, tasks={"more": other.tasks["vqa"]}))
    assert any("drawn, since" in line and "heads" in line for line in lines)
    crossed = cross_modal_recipe(world, tmp_path / "crossed")
    with pytest.raises(ValueError, match="has a JointEncoder, and the recipe a CrossModal: name a"):
        begun(replace(crossed, tasks=recipe.tasks, start=str(first)))


def test_trained_caches_come_over_and_halves_do_not(world: Path, tmp_path: Path) -> None:
    recipe = class_recipe(world, tmp_path / "first", {"cache": TipAdapter()})
    still = replace(recipe.optimizer, learning_rate=0.0)
    assert run_recipe(recipe) == 0
    second = replace(recipe, output=str(tmp_path / "second"), start=str(tmp_path / "first"))
    assert run_recipe(replace(second, optimizer=still)) == 0
    assert run_recipe(replace(recipe, output=str(tmp_path / "fresh"), optimizer=still)) == 0
    first, second_, fresh = (state_of(tmp_path / name) for name in ("first", "second", "fresh"))
    (keys,) = (name for name in first if name.endswith("cache.keys"))
    assert second_[keys].equal(first[keys])
    assert not fresh[keys].equal(first[keys])
    for half in ("base", "new"):
        assert run_recipe(class_recipe(world, tmp_path / half, {"r": SimNL()}, half=half)) == 0
    new = read_recipe(tmp_path / "new/artifact")  # with its classes
    with pytest.raises(ValueError, match=r"heads\.colour belong to the classes"):
        begun(replace(new, start=str(tmp_path / "base")))


def test_fusion_keeps_to_the_adapters_that_it_was_trained_beside(
    world: Path, tmp_path: Path
) -> None:
    recipe = recipe_with("T5", "Adapter", world, tmp_path / "a")
    old, new = (
        str(write_run(replace(recipe, output=str(tmp_path / name)), seed=seed))
        for seed, name in enumerate(("old", "new"))
    )
    fusion = replace(recipe, methods={"fuse": SimAdapter(runs={"vqa": old, "b": old})})
    first = write_run(replace(fusion, output=str(tmp_path / "first")))
    assert begun(replace(fusion, start=str(first)))
    other = {"fuse": SimAdapter(runs={"vqa": new, "b": old})}
    with pytest.raises(ValueError, match=r"methods\.fuse has trained beside other frozen weights"):
        begun(replace(fusion, methods=other, start=str(first)))


def test_a_shrunken_run_says_how_to_begin_with_it(world: Path, tmp_path: Path) -> None:
    recipe = with_model(world_recipe(world, tmp_path / "first"), train_norms=False)
    recipe = replace(recipe, methods={"a": Shrinking(of=Adapter(reduction=4), cycles=1)})
    assert run_recipe(recipe) == 0
    again = replace(recipe, output=str(tmp_path / "again"), start=str(tmp_path / "first"))
    with pytest.raises(ValueError, match="makes a plain Adapter of it, or folds LoRA, to begin"):
        begun(again)
    convert("merge", "--run", tmp_path / "first", "--out", tmp_path / "plain")
    plain = read_recipe(tmp_path / "plain")
    tensors, _, _ = begun(replace(plain, start=str(tmp_path / "plain")))
    there = state_of(tmp_path / "plain")
    assert all(tensors[name].equal(there[name]) for name in there)


def test_frozen_weights_must_be_the_same(world: Path, tmp_path: Path) -> None:
    recipe = kind_recipe("image_text", world, tmp_path / "first")
    first = write_run(recipe)
    save_tiny(IMAGE_TYPE, tmp_path / "other", seed=1)
    other = with_model(recipe, path=str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"start: .* was trained on another backbone than"):
        Transfer.of(replace(other, start=str(first)))


@pytest.mark.parametrize("stage", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_same_on_two_ranks_and_resumed(
    stage: int, ranks2: RankPool, world: Path, tmp_path: Path
) -> None:
    recipe = world_recipe(world, tmp_path / "first", stage)
    first = write_run(replace(recipe, methods={"all": Full()}))
    adapter = {"adapter": Adapter(reduction=4)}
    second = replace(recipe, methods=adapter, output=str(tmp_path / "second"), start=str(first))
    check_resume(ranks2, second, tmp_path)
    single = replace(second, output=str(tmp_path / "single"))
    assert run_recipe(single) == 0
    one, two = state_of(tmp_path / "single"), state_of(tmp_path / "second")
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)
