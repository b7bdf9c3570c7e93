"""What `vlds plan` prints: a page for each number of ranks, or all in one JSON object."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from vlds.plan.forecast import Machine, forecasts_of, page, tree
from vlds.plan.needs import plan_recipe
from vlds.recipe.config import Recipe


def pages(recipe: Recipe, numbers: Sequence[int], machine: Machine) -> Iterator[str]:
    """The pieces of the pages, in the order of the numbers of ranks; some take a while."""
    plans = plan_recipe(recipe, numbers, on_gpu=not machine.is_here)
    for plan, forecast in forecasts_of(recipe, plans, on_gpu=not machine.is_here):
        yield from page(plan, recipe, forecast, machine)
        if plan is not plans[-1]:
            yield ""


def as_json(recipe: Recipe, numbers: Sequence[int], machine: Machine) -> str:
    """The same for programs."""
    plans = plan_recipe(recipe, numbers, on_gpu=not machine.is_here)
    trees = {
        plan.world_size: tree(plan, recipe, forecast, machine)
        for plan, forecast in forecasts_of(recipe, plans, on_gpu=not machine.is_here)
    }
    return json.dumps(trees, indent=1)
