"""`vlds plan`: what a run of a recipe needs, found out before it runs."""

from vlds.plan.forecast import Forecast, forecast_or_reason, forecasts_of
from vlds.plan.held import Held, planned
from vlds.plan.machine import Machine
from vlds.plan.needs import Needs, Plan, plan_recipe
from vlds.plan.table import page, tree

__all__ = [
    "Forecast", "Held", "Machine", "Needs", "Plan", "forecast_or_reason", "forecasts_of",
    "page", "plan_recipe", "planned", "tree",
]  # fmt: skip
