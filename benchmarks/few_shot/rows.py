"""The rows of the tables: methods as recipes name them, and how they are trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


def entry(name: str, **fields: Any) -> dict[str, Any]:
    """A class and its settings, as recipes write them."""
    return {"class_path": name, "init_args": fields}


def one(name: str, **fields: Any) -> dict[str, Any]:
    """The recipe's `methods` with one method."""
    return {name.lower(): entry(name, **fields)}


@dataclass(frozen=True)
class Row:
    """A method of a table."""

    methods: Mapping[str, Any]
    learning_rate: float
    eps: float = 1e-6
    decay: float = 0.01
    head: Mapping[str, Any] = field(default_factory=dict)
    """Replaces the recipe's head, if it is not empty."""
    steps: int = 200


PROBE = {"class_path": "LinearHead"}
NARROW = 16
"""Reduction of the adapters that stay narrow; those that shrink begin at an eighth of it."""
FEW_SHOT = {
    "linear probe": Row({}, 0.05, head=PROBE),
    "Tip-Adapter-F": Row(one("TipAdapter", alpha=3.0, beta=3.0), 0.01, eps=1e-4),
    "SimNL": Row(one("SimNL", alpha=3.0, beta=3.0), 0.01, eps=1e-3, decay=0.1),
    "APoLLo": Row(one("APoLLo", depth=3, length=1, heads=4), 0.002),
    "prompts alone": Row(one("APoLLo", depth=3, length=1, adapters=False), 0.05),
    "Adapter, both towers": Row(one("Adapter", reduction=8, init="identity"), 0.002),
    "LoRA, vision": Row(one("LoRA", rank=4, train_biases=False, part="vision"), 0.01),
}
"""Rows of the table of shots."""
TO_NEW = ("APoLLo", "prompts alone", "Adapter, both towers", "LoRA, vision")
"""Rows without weights of a class: what they learn can serve other classes."""
SHRUNK = {
    "adapters of width 64, shrunk to 8": Row(
        one(
            "Shrinking",
            of=entry("Adapter", reduction=NARROW // 8, init="identity"),
            cycles=3,
            restart=False,
            part="vision",
        ),
        0.004,
        head=PROBE,
        steps=400,
    ),
    "adapters of width 8": Row(
        one("Adapter", reduction=NARROW, init="identity", part="vision"),
        0.004,
        head=PROBE,
        steps=400,
    ),
}
"""MiMi on CLIP's vision tower as a classifier, and what it must beat."""
ROWS = FEW_SHOT | SHRUNK
