"""`vlds plan`: what a run of a recipe needs, computed without loading anything."""

from vlds.plan.held import Held, planned
from vlds.plan.needs import Needs, Plan, plan_recipe
from vlds.plan.table import table

__all__ = ["Held", "Needs", "Plan", "plan_recipe", "planned", "table"]
