"""Batches of one task and of its own size, and runs whose length is given in epochs."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import pytest

from tests.toys.files import read_lines
from tests.toys.rank_jobs import check_complaint, run_recipe
from tests.toys.rank_pool import RankPool
from tests.toys.recipes import with_model
from tests.toys.world import world_recipe
from vlds.data.shards.store import open_dataset
from vlds.recipe.config import Recipe, load_recipe


def task_batches(world: Path, output: Path) -> Recipe:
    """Two epochs of questions in batches of 7 and captions in batches of 5, without dropout."""
    recipe = world_recipe(world, output)
    vqa = replace(recipe.tasks["vqa"], weight=1.0, batch_size=7)
    caption = replace(recipe.tasks["caption"], batch_size=5)
    return with_model(
        replace(
            recipe,
            tasks={"vqa": vqa, "caption": caption},
            data=replace(recipe.data, unit="global_batch", temperature=1.0, micro_batch_size=2),
            training=replace(recipe.training, steps=None, epochs=2),
        ),
        backbone=replace(recipe.model.backbone, dropout=0.0),
    )


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = read_lines(run / "metrics.jsonl")
    return [line for line in lines if "loss" in line]


@pytest.mark.slow
def test_epochs_become_steps_and_any_ranks_take_the_same(
    world: Path, ranks1: RankPool, ranks4: RankPool, tmp_path: Path
) -> None:
    """Four ranks share batches of 7 and 5 in micro-batches of one and two."""
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert ranks1.run(run_recipe, task_batches(world, alone), timeout=120) == [0]
    assert ranks4.run(run_recipe, task_batches(world, shared), timeout=120) == [0] * 4
    questions, captions = (
        open_dataset(world / name).num_annotations for name in ("vqa", "caption")
    )
    vqa_steps, caption_steps = 2 * ceil(questions / 7), 2 * ceil(captions / 5)
    steps = vqa_steps + caption_steps
    saved = load_recipe(shared / "recipe.yaml").training
    assert (saved.steps, saved.epochs) == (steps, None)
    one, other = metrics(alone), metrics(shared)
    assert [line["step"] for line in one] == list(range(1, steps + 1))
    for name in ("loss", "loss/vqa", "loss/caption", "epoch/vqa", "epoch/caption"):
        found, expected = ([line.get(name) for line in lines] for lines in (other, one))
        assert found == [value and pytest.approx(value, rel=1e-3) for value in expected], name
    # A batch is of one task; its last batch of an epoch is filled up from the next.
    assert all(("loss/vqa" in line) != ("loss/caption" in line) for line in one)
    assert other[-1]["epoch/vqa"] == pytest.approx(vqa_steps * 7 / questions)
    assert other[-1]["epoch/caption"] == pytest.approx(caption_steps * 5 / captions)


def test_a_batch_size_needs_batches_of_one_task(world: Path, tmp_path: Path) -> None:
    recipe = world_recipe(world, tmp_path)
    vqa = replace(recipe.tasks["vqa"], batch_size=7)
    with pytest.raises(ValueError, match=r"tasks\.vqa\.batch_size: got 7, but data\.unit is exam"):
        replace(recipe, tasks=recipe.tasks | {"vqa": vqa})


def test_lanes_divide_every_tasks_batch(world: Path, tmp_path: Path) -> None:
    recipe = task_batches(world, tmp_path)
    message = check_complaint(replace(recipe, data=replace(recipe.data, lanes=5)))
    assert "data.lanes: 5 do not divide tasks.vqa.batch_size 7; give a divisor of it" in message
