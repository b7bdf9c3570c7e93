"""What a resumed run's recipe has that the run's saved one has not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vlds.config import Recipe, load_recipe, to_tree
from vlds.data.order.permutation import differences

RECIPE = "recipe.yaml"
"""A run's recipe, in its folder."""


def recipe_changes(recipe: Recipe) -> list[str]:
    """A line for each key whose value differs from that in the run's folder, except `output`: a run
    may move.

    Errors: OSError or ValueError if the saved recipe cannot be read.
    """
    before = load_recipe(Path(recipe.output) / RECIPE)
    trees: list[Mapping[str, object]] = [to_tree(before), to_tree(recipe)]
    old, new = ({k: v for k, v in tree.items() if k != "output"} for tree in trees)
    return differences(old, new)


def model_changes(recipe: Recipe) -> list[str]:
    """Those of the model and its methods; none if the saved recipe cannot be read."""
    try:
        changes = recipe_changes(recipe)
    except (OSError, ValueError):
        return []
    return [line for line in changes if line.startswith(("model.", "methods."))]
