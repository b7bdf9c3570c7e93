"""Fixtures of the fault tests: ranks that start fast, and runs that nobody disturbed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.toys.faults.forked_ranks import ForkedRanks
from tests.toys.recipes import short_recipe, train_words
from vlds.recipe.config import Recipe


@pytest.fixture(scope="session")
def forked() -> ForkedRanks:
    """Two ranks that start within a second."""
    return ForkedRanks()


@pytest.fixture(scope="session")
def undisturbed(
    forked: ForkedRanks, world: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Recipe]:
    """The short run at a ZeRO stage, from its beginning to its end."""
    done: dict[int, Recipe] = {}

    def run(stage: int) -> Recipe:
        if stage not in done:
            recipe = short_recipe(world, tmp_path_factory.mktemp("undisturbed") / "run", stage)
            forked.start(Path(recipe.output), train_words(recipe))
            assert forked.wait() == [0, 0]
            done[stage] = recipe
        return done[stage]

    return run
