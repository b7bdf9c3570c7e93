"""What `vlds plan` prints: a page for each number of ranks, or all in one JSON object."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

from vlds.plan.forecast import Duration, Machine, forecasts_of, page, tree
from vlds.plan.needs import plan_recipe
from vlds.plan.reading import Store, reading_of
from vlds.recipe.config import Recipe


def pages(
    recipe: Recipe, numbers: Sequence[int], machine: Machine, store: Store | None = None
) -> Iterator[str]:
    """The pieces of the pages, in the order of the numbers of ranks; some take a while. Reading is
    told where there is a `store`."""
    plans = plan_recipe(recipe, numbers, on_gpu=not machine.is_here)
    for plan, forecast in forecasts_of(recipe, plans, on_gpu=not machine.is_here):
        yield from page(plan, recipe, forecast, machine)
        if store is not None:
            step_s = store.step_s
            if step_s is None and not isinstance(forecast, str):
                step_s = Duration.of(plan, recipe, forecast, machine).step
            yield reading_of(recipe, plan.world_size, replace(store, step_s=step_s)).text()
        if plan is not plans[-1]:
            yield ""


def as_json(
    recipe: Recipe, numbers: Sequence[int], machine: Machine, store: Store | None = None
) -> str:
    """The same for programs."""
    plans = plan_recipe(recipe, numbers, on_gpu=not machine.is_here)
    trees = {}
    for plan, forecast in forecasts_of(recipe, plans, on_gpu=not machine.is_here):
        found = trees[plan.world_size] = tree(plan, recipe, forecast, machine)
        if store is not None:
            step_s = store.step_s or found.get("seconds", {}).get("step")
            reading = reading_of(recipe, plan.world_size, replace(store, step_s=step_s))
            found["reading"] = reading.tree()
    return json.dumps(trees, indent=1)
