"""Clips, of which there are stored features and subtitles: shards, two ranks, scores."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.toys.clips import clip_recipe
from tests.toys.files import read_lines
from tests.toys.rank_jobs import run_recipe
from tests.toys.rank_pool import RankPool


@pytest.mark.slow
def test_both_tasks_train_and_are_scored(world: Path, ranks2: RankPool, tmp_path: Path) -> None:
    recipe = clip_recipe(world, tmp_path)
    assert ranks2.run(run_recipe, recipe, timeout=120) == [0, 0]
    lines = read_lines(Path(recipe.output) / "metrics.jsonl")
    losses = [line for line in lines if "loss" in line]
    assert all(
        losses[-1][f"loss/{name}"] < 0.8 * losses[0][f"loss/{name}"] for name in recipe.tasks
    )
    # 40 steps of 8 examples over two tasks of 24, with equal weights.
    assert [losses[-1][f"epoch/{name}"] for name in recipe.tasks] == [160 / 24] * 2
    assert lines[-1]["scores"].keys() == recipe.tasks.keys()
    assert lines[-1]["scores"]["tvqa"].keys() == {"accuracy"}
    assert "word_f1" in lines[-1]["scores"]["tvc"]
    file = Path(recipe.output) / "predictions" / "step-00000040" / "tvqa.jsonl"
    predicted = read_lines(file)
    assert sorted(line["id"] for line in predicted) == sorted(
        f"q{number}-{n}" for number in range(12) for n in range(2)
    )
