"""A reader's working directory, and an untrained run in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import vlds
from tests.toys.trained_runs import talkative_run
from tests.toys.world import COLOURS, world_recipe, write_world
from vlds.recipe.config import save_recipe


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose answers are many, with the single task vqa; its recipe is in vqa.yaml beside
    it, and so are the world and three pictures."""
    home = tmp_path_factory.mktemp("home")
    write_world(home / "world")
    recipe = world_recipe(home / "world", home / "run")
    recipe = replace(recipe, tasks={"vqa": recipe.tasks["vqa"]})
    save_recipe(replace(recipe, output=str(home / "unused")), home / "vqa.yaml")
    for name, colour in COLOURS.items():
        Image.new("RGB", (40, 30), colour).save(home / f"{name}.png")
    return talkative_run(recipe)


@pytest.fixture(scope="session")
def model(run: Path) -> vlds.Model:
    return vlds.load(run)
