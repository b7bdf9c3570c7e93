"""Two programs that would write one folder: the second is refused, and told who the first is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.cli import main as data_prep
from tests.toys.pictures import png
from tests.toys.processes import holder
from tests.toys.rank_pool import RankPool
from tests.toys.world import world_recipe
from vlds.recipe.config import Recipe
from vlds.training.loop import train


def start(recipe: Recipe, resume: bool) -> str:
    """What `vlds train` does or says on a rank."""
    try:
        return str(train(recipe, resume=resume))
    except ValueError as error:
        return str(error)


@pytest.mark.slow
def test_a_run_beside_a_live_one(world: Path, ranks2: RankPool, tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe = world_recipe(world, run)
    short = replace(recipe, training=replace(recipe.training, steps=5))
    assert ranks2.run(start, short, False, timeout=120) == ["0", "0"]
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    with holder(run) as first:
        said = ranks2.run(start, recipe, True, timeout=60)
        assert said[0].startswith(f"{run} is being written by process {first.pid} on ")
        assert said[1] == said[0]
    after = {path: path.stat().st_mtime_ns for path in before}
    assert after == before, "the second program has touched the first one's files"
    assert ranks2.run(start, recipe, True, timeout=120) == ["0", "0"]


def test_a_preparation_beside_a_live_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"image": "a.png", "question": "?", "answer": "yes"}\n')
    (tmp_path / "a.png").write_bytes(png())
    words = [
        "jsonl", "--task", "vqa", "--annotations", str(tmp_path / "rows.jsonl"),
        "--images", str(tmp_path), "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    with holder(tmp_path / "out") as first:
        assert data_prep(words) == 2
    assert f"out is being written by process {first.pid} on " in capsys.readouterr().err
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert data_prep(words) == 0
