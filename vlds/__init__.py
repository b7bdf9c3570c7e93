"""vlds: vision-and-language models, tuned by a few percent of their weights, with DeepSpeed.

From Python: `vlds.train`, `vlds.load` and what `__all__` lists; see docs/python.md.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlds.api.answers import Answer, Model, load
    from vlds.api.attach import Attached, attach
    from vlds.api.commands import evaluate, prepare, train
    from vlds.api.examples import Examples, Item, dataset
    from vlds.api.own_loop import OpenRecipe, open_recipe
    from vlds.api.rows import Rows
    from vlds.api.runs import Run
    from vlds.evaluation.result import Scored

HOMES = {
    "Answer": "vlds.api.answers",
    "Attached": "vlds.api.attach",
    "Examples": "vlds.api.examples",
    "Item": "vlds.api.examples",
    "Model": "vlds.api.answers",
    "OpenRecipe": "vlds.api.own_loop",
    "Rows": "vlds.api.rows",
    "Run": "vlds.api.runs",
    "Scored": "vlds.evaluation.result",
    "attach": "vlds.api.attach",
    "dataset": "vlds.api.examples",
    "evaluate": "vlds.api.commands",
    "load": "vlds.api.answers",
    "open_recipe": "vlds.api.own_loop",
    "prepare": "vlds.api.commands",
    "train": "vlds.api.commands",
}
"""Public name -> its module."""
__all__ = [
    "Answer",
    "Attached",
    "Examples",
    "Item",
    "Model",
    "OpenRecipe",
    "Rows",
    "Run",
    "Scored",
    "attach",
    "dataset",
    "evaluate",
    "load",
    "open_recipe",
    "prepare",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import torch and the rest only when somebody asks: each command imports this package."""
    if name not in HOMES:
        raise AttributeError(f"module 'vlds' has no attribute {name!r}")
    # Unlike a command, a program keeps its own warnings: it is only spared those of imports.
    import_module("vlds.runtime.terminal").quiet_imports()
    return getattr(import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    """What a notebook completes."""
    return [*globals(), *HOMES]
