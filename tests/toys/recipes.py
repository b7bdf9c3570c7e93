"""Recipes for what several test modules look at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.toys.kinds import kind_recipe
from vlds.recipe.config import Recipe, parse_recipe, save_recipe

RECIPE = """\
output: runs/mine
model:
  class_path: JointSeq2Seq
  init_args:
    backbone: {class_path: T5, init_args: {config: sizes.json, tokenizer: pieces.model}}
    vision: {class_path: ConvNet, init_args: {image_size: 64, grid: 4}}
methods: {adapter: {class_path: Adapter, init_args: {reduction: 4}}}
tasks: {vqa: {class_path: VQA, init_args: {train: [a], evaluate: [b]}}}
"""


def recipe_complaint(*arguments: str) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011 (each test looks at the message)
        parse_recipe(list(arguments))
    message = str(error.value)
    for word in ("pydantic", "class_path '", "<class", "Union", "dot import"):
        assert word not in message
    return message


def with_model(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe with other fields of its model."""
    return replace(recipe, model=replace(recipe.model, **changes))


def with_task(recipe: Recipe, name: str, **changes: Any) -> Recipe:
    """The recipe with other fields of one task."""
    task = replace(recipe.tasks[name], **changes)
    return replace(recipe, tasks=recipe.tasks | {name: task})


def short_recipe(world: Path, output: Path, stage: int, kind: str = "joint") -> Recipe:
    """Ten steps, a state after every second one, no evaluation."""
    recipe = kind_recipe(kind, world, output, stage)
    silent = {name: replace(task, evaluate=[]) for name, task in recipe.tasks.items()}
    training = replace(recipe.training, save_every=2, collective_timeout=30)
    return replace(recipe, tasks=silent, training=training)


def train_words(recipe: Recipe, *words: str) -> list[str]:
    """Write a recipe next to its run's folder; the command line of `vlds` that trains it."""
    run = Path(recipe.output)
    file = run.with_name(f"{run.name}.yaml")
    save_recipe(recipe, file)
    return ["train", "--config", str(file), *words]
