"""The rows of the tables: methods as recipes name them, and how they are trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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


ZERO_SHOT = "zero-shot"
PROBE = {"class_path": "LinearHead"}
FEW_SHOT = {
    "linear probe": Row({}, 0.05, head=PROBE),
    "Tip-Adapter-F": Row(one("TipAdapter", alpha=3.0, beta=3.0), 0.01, eps=1e-4),
    "SimNL": Row(one("SimNL", alpha=3.0, beta=3.0), 0.01, eps=1e-3, decay=0.1),
    "APoLLo": Row(one("APoLLo", depth=3, length=1, heads=4), 0.002),
    "prompts alone": Row(
        one("APoLLo", depth=3, length=1, adapters=False, contrast=0.0, divergence=0.0), 0.05
    ),
    "Adapter, both towers": Row(one("Adapter", reduction=8, init="identity"), 0.01),
    "LoRA, vision": Row(one("LoRA", rank=4, train_biases=False, part="vision"), 0.01),
}
"""Rows of the table of shots."""
# LoRA begins as the frozen model, and without a learning rate it stays so. Prompts disturb the
# vision tower from the beginning: what they score before training is not zero-shot.
FROZEN = replace(FEW_SHOT["LoRA, vision"], learning_rate=0.0, steps=1)
TO_NEW = {
    "APoLLo": 0.0002,
    "prompts alone": 0.02,
    "Adapter, both towers": 0.002,
    "LoRA, vision": 0.001,
}
"""Rows without weights of a class, which can serve classes that they did not learn -> the learning
rate of the table of halves, which has the best harmonic mean over seeds 0 and 11."""
CYCLE = 400
"""Steps of a whole training of adapters that do not shrink."""
NARROW = Row(
    one("Adapter", reduction=16, init="identity", part="vision"), 0.016, head=PROBE, steps=CYCLE
)
"""A vision tower with adapters of width 8 as a classifier."""


def shrinking(restart: bool, steps: int, rate: float) -> Row:
    """MiMi: adapters of width 64 that end with as many weights as narrow ones, after three cuts."""
    wide = entry("Adapter", reduction=2, init="identity")
    methods = one("Shrinking", of=wide, cycles=3, restart=restart, part="vision")
    return replace(NARROW, methods=methods, steps=steps, learning_rate=rate)


SHRUNK = {
    CYCLE: {
        "width 8": NARROW,
        "64 to 8, one schedule": shrinking(False, CYCLE, 0.008),
        "64 to 8, a schedule for each cycle": shrinking(True, CYCLE, 0.008),
    },
    4 * CYCLE: {
        "width 8, four times the steps": replace(NARROW, steps=4 * CYCLE, learning_rate=0.002),
        "64 to 8, four times the steps, one schedule": shrinking(False, 4 * CYCLE, 0.004),
        "64 to 8, four whole cycles": shrinking(True, 4 * CYCLE, 0.002),
    },
}
"""Steps -> rows of the table of adapters that shrink; the first is what the others are held to."""
SHRUNK_ROWS = {name: row for rows in SHRUNK.values() for name, row in rows.items()}
ROWS = {ZERO_SHOT: FROZEN} | FEW_SHOT | SHRUNK_ROWS
