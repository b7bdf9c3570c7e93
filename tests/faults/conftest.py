"""Fixtures of the fault tests: ranks that start fast, and runs that nobody disturbed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.toys.faults.warm import Warm
from tests.toys.recipes import short_recipe, train_words
from vlds.config import Recipe


@pytest.fixture(scope="session")
def warm() -> Warm:
    """Two ranks that start within a second."""
    return Warm()


@pytest.fixture(scope="session")
def undisturbed(
    warm: Warm, world: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Recipe]:
    """The short run at a ZeRO stage, from its beginning to its end."""
    done: dict[int, Recipe] = {}

    def run(stage: int) -> Recipe:
        if stage not in done:
            recipe = short_recipe(world, tmp_path_factory.mktemp("undisturbed") / "run", stage)
            warm.start(Path(recipe.output), train_words(recipe))
            assert warm.wait() == [0, 0]
            done[stage] = recipe
        return done[stage]

    return run
