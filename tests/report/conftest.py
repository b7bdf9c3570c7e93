"""Shards and runs for several tests, which may change nothing but a gallery."""

from __future__ import annotations

import pytest

from tests.toys.scored_runs import Runs, lines_of, scored_recipe, write_scored_run
from tests.toys.world import write_world


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The second run makes fewer mistakes, and others."""
    folder = tmp_path_factory.mktemp("scored")
    world = folder / "world"
    world.mkdir()
    write_world(world)
    made = []
    for name, wrong_every in (("first", 3), ("second", 5)):
        recipe = scored_recipe(world, folder / name)
        lines = {task: lines_of(config, wrong_every, 1) for task, config in recipe.tasks.items()}
        made.append(write_scored_run(folder / name, recipe, lines))
    return Runs(world, *made)
