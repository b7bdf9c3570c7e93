"""A run that is interrupted and resumed, and the one that was not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tests.toys.files import read_lines
from tests.toys.rank_jobs import run_recipe
from tests.toys.rank_pool import RankPool
from vlds.recipe.config import Recipe

STATE = "state/step-00000010/state.safetensors"


def losses(run: Path) -> list[tuple[int, float, float]]:
    """Step, loss and gradient norm of every line that has them."""
    lines = read_lines(run / "metrics.jsonl")
    return [(line["step"], line["loss"], line["gradient_norm"]) for line in lines if "loss" in line]


def half_a_run(whole: Path, half: Path) -> None:
    """What a run leaves that was killed at some time after its fifth step."""
    shutil.copytree(whole, half)
    for later in ("state/step-00000010", "artifact", "predictions"):
        shutil.rmtree(half / later)


def assert_same_run(found: Path, expected: Path, task: str = "vqa", skips: bool = False) -> None:
    assert losses(found) == losses(expected)
    if not skips:
        assert [step for step, *_ in losses(found)] == list(range(1, 11))
    for file in (STATE, "artifact/weights.safetensors", f"predictions/step-00000010/{task}.jsonl"):
        assert (found / file).read_bytes() == (expected / file).read_bytes(), file


def check_resume(
    pool: RankPool,
    recipe: Recipe,
    folder: Path,
    between: Callable[[], None] = lambda: None,
    run: Callable[[Recipe, bool], int] = run_recipe,
    skips: bool = False,
) -> None:
    whole, half = Path(recipe.output), folder / "half"
    assert pool.run(run, recipe, False, timeout=120) == [0] * pool.world_size
    half_a_run(whole, half)
    between()
    resumed = replace(recipe, output=str(half))
    assert pool.run(run, resumed, True, timeout=120) == [0] * pool.world_size
    assert_same_run(half, whole, skips=skips)
