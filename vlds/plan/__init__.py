"""`vlds plan`: what a run of a recipe needs, found out before it runs."""

from vlds.plan.forecast import Forecast, Machine, forecast_or_reason, forecasts_of, page, tree
from vlds.plan.needs import Held, Needs, Plan, plan_recipe, planned
from vlds.plan.output import as_json, pages

__all__ = [
    "Forecast", "Held", "Machine", "Needs", "Plan", "as_json", "forecast_or_reason",
    "forecasts_of", "page", "pages", "plan_recipe", "planned", "tree",
]  # fmt: skip
