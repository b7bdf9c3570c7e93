"""Runs with heads: combined, their heads moved with their tasks, refused where no place is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.toys.recipes import with_model
from tests.toys.trained_runs import recipe_from, write_run
from vlds.artifact import load_run
from vlds.convert.combine import average, put, take
from vlds.convert.reference import ReferenceFile
from vlds.models.heads import LinearHead
from vlds.models.methods import Adapter
from vlds.recipe.config import Recipe

COLOURS = ("red", "green", "blue")


def class_recipe(world: Path, folder: Path, output: str, classes: tuple[str, ...]) -> Recipe:
    """vqa by a head, caption in words; adapters for each task."""
    recipe = with_model(recipe_from("T5", world, folder), train_norms=False)
    vqa = replace(recipe.tasks["vqa"], head=LinearHead(classes=classes))
    return replace(
        recipe,
        output=str(folder / output),
        methods={"adapter": Adapter(reduction=4, sharing="multiple")},
        tasks={**recipe.tasks, "vqa": vqa},
    )


def runs_of(world: Path, folder: Path, *lists: tuple[str, ...]) -> list[Path]:
    """Runs that have trained to different weights."""
    recipes = [class_recipe(world, folder, f"run-{n}", c) for n, c in enumerate(lists)]
    return [write_run(recipe, seed=1 + n) for n, recipe in enumerate(recipes)]


def head_of(run: Path) -> torch.Tensor:
    return load_run(run, torch.float32).model.get_parameter("heads.vqa.weight")


@pytest.mark.slow
def test_the_mean_of_runs_is_that_of_their_heads(world: Path, tmp_path: Path) -> None:
    runs = runs_of(world, tmp_path, COLOURS, COLOURS)
    mean, _ = average(runs, None)
    expected = (head_of(runs[0]) + head_of(runs[1])) / 2
    assert torch.allclose(mean.model.get_parameter("heads.vqa.weight"), expected)
    assert not torch.equal(head_of(runs[0]), head_of(runs[1]))


def test_runs_of_other_classes_have_no_mean(world: Path, tmp_path: Path) -> None:
    """Also where there are as many."""
    runs = runs_of(world, tmp_path, COLOURS, ("blue", "red", "green"))
    with pytest.raises(ValueError, match=r"heads: .*only runs of one model can be combined"):
        average(runs, None)


@pytest.mark.slow
def test_a_task_brings_its_head_along(world: Path, tmp_path: Path) -> None:
    """What else tasks share is the same."""
    recipe = class_recipe(world, tmp_path, "run", COLOURS)
    recipe = with_model(recipe, train_visual_embedding=False)
    alike = [replace(recipe, output=str(tmp_path / name)) for name in ("one", "other")]
    receiver, giver = (write_run(each, seed=1 + n) for n, each in enumerate(alike))
    whole, _ = put(receiver, giver, "vqa")
    found = dict(whole.model.unique_state())
    assert torch.equal(found["heads.vqa.weight"], head_of(giver))
    back, _ = put(receiver, giver, "caption")
    assert torch.equal(dict(back.model.unique_state())["heads.vqa.weight"], head_of(receiver))
    single, _ = take(giver, "vqa")
    assert torch.equal(dict(single.model.unique_state())["heads.vqa.weight"], head_of(giver))
    texts, _ = take(giver, "caption")
    assert not texts.model.heads


def test_the_original_layout_has_no_heads(world: Path, tmp_path: Path) -> None:
    (run,) = runs_of(world, tmp_path, COLOURS)
    with pytest.raises(ValueError, match=r"tasks\.vqa\.head: the original .* `vlds convert hf`"):
        ReferenceFile(load_run(run))
