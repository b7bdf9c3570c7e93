"""vlds: vision-and-language models, tuned by a few percent of their weights, with DeepSpeed.

From Python: `vlds.load`, `vlds.train`, `vlds.evaluate`; see docs/python.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlds.api import Answer, Model, Scored, evaluate, load, train

__all__ = ["Answer", "Model", "Scored", "evaluate", "load", "train"]


def __getattr__(name: str) -> Any:
    """Import torch and the rest only when somebody asks: each command imports this package."""
    if name not in __all__:
        raise AttributeError(f"module 'vlds' has no attribute {name!r}")
    from vlds import api

    return getattr(api, name)
