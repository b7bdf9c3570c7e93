"""A recipe's parts in a loop of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import vlds
from tests.toys.files import read_lines
from tests.toys.rank_jobs import run_recipe
from tests.toys.rank_pool import RankPool
from tests.toys.world import world_recipe
from vlds.recipe.config import save_recipe

BATCHES = 10


def own_loop(parts: vlds.OpenRecipe) -> list[float]:
    """A plain loop of torch; the losses."""
    optimizer = torch.optim.AdamW(parts.parameter_groups(), eps=1e-6)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, parts.schedule)
    losses = []
    for batch in parts.loader:
        loss = parts.loss(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parts.model.parameters(), 5.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_an_own_loop_trains_what_vlds_train_trains(
    run: Path, ranks1: RankPool, tmp_path: Path
) -> None:
    """With dropout, the schedule, two tasks and weights of each; the losses and every weight."""
    recipe = world_recipe(run.parent / "world", tmp_path / "theirs")
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert ranks1.run(run_recipe, recipe) == [0]
    parts = vlds.open_recipe(tmp_path / "recipe.yaml")
    assert len(parts.loader) == BATCHES
    losses = own_loop(parts)
    logged = [line["loss"] for line in read_lines(tmp_path / "theirs" / "metrics.jsonl")
              if "loss" in line]  # fmt: skip
    assert losses == pytest.approx(logged, rel=1e-5)
    saved = parts.save(tmp_path / "own")
    ours, theirs = (
        load_file(folder / "artifact" / "weights.safetensors")
        for folder in (saved, tmp_path / "theirs")
    )
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-4, atol=1e-6, msg=name)
    assert vlds.load(saved).tasks == ["vqa", "caption"]
    with pytest.raises(ValueError, match="holds a run already; name another folder"):
        parts.save(tmp_path / "own")


def test_a_loader_begins_again_and_evaluation_draws_nothing(run: Path) -> None:
    parts = vlds.open_recipe(run.parent / "vqa.yaml", changes={"training.steps": 2})
    first, again = ([batch.ids for batch in parts.loader] for _ in range(2))
    assert first == again
    assert len(first) == 2
    batch = next(iter(parts.loader))
    torch.manual_seed(1)
    trained = parts.loss(batch).item()
    assert parts.loss(batch).item() == trained  # dropout follows the step
    parts.model.eval()
    assert parts.loss(batch).item() != trained
    total = sum(parameter.numel() for group in parts.parameter_groups()
                for parameter in group["params"])  # fmt: skip
    assert total == parts.model.count_parameters().trainable


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"meta": {"steps": 3}}, "meta: only `vlds train` does it"),
        ({"data.reader": "sequential"}, "data.reader: got sequential"),
        ({"training.step": 3}, r"training\.step.*did you mean"),
        ({"tasks.vqa.train": []}, r"tasks\.vqa\.train: names no data set"),
        (
            {"methods": {"shrinking": {"class_path": "Shrinking"}}},
            "methods.shrinking: it acts between steps|methods.shrinking",
        ),
    ],
)
def test_what_an_own_loop_cannot_do(run: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vlds.open_recipe(run.parent / "vqa.yaml", changes=changes)


def test_a_recipe_may_be_a_dict(run: Path) -> None:
    with pytest.raises(ValueError, match="recipe: got int; give a path"):
        vlds.open_recipe(7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="output, model, methods, tasks are required"):
        vlds.open_recipe({})
