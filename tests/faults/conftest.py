"""Fixtures of the fault tests: ranks that start fast, and runs that nobody disturbed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.toys.faults.warm import Warm
from tests.toys.world import world_recipe
from vlds.config import Recipe, save_recipe


@pytest.fixture(scope="session")
def warm() -> Warm:
    """Two ranks that start within a second."""
    return Warm()


def short_recipe(world: Path, output: Path, stage: int) -> Recipe:
    """Ten steps, a state after each second, no evaluation."""
    recipe = world_recipe(world, output, stage)
    silent = {name: replace(task, evaluate=[]) for name, task in recipe.tasks.items()}
    training = replace(recipe.training, save_every=2, collective_timeout=30)
    return replace(recipe, tasks=silent, training=training)


def command(recipe: Recipe, *words: str) -> list[str]:
    """The command line that trains a recipe, which is written beside its run."""
    run = Path(recipe.output)
    file = run.with_name(f"{run.name}.yaml")
    save_recipe(recipe, file)
    return ["train", "--config", str(file), *words]


@pytest.fixture(scope="session")
def undisturbed(
    warm: Warm, world: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Recipe]:
    """The short run at a ZeRO stage, from its beginning to its end."""
    done: dict[int, Recipe] = {}

    def run(stage: int) -> Recipe:
        if stage not in done:
            recipe = short_recipe(world, tmp_path_factory.mktemp("undisturbed") / "run", stage)
            warm.start(Path(recipe.output), command(recipe))
            assert warm.wait() == [0, 0]
            done[stage] = recipe
        return done[stage]

    return run
