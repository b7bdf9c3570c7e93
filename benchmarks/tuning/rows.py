"""The rows of the tables: methods as recipes name them, and their learning rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

INPUT = "<input>"
"""Stands for the folder of a row's input run in its methods."""


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    methods: Mapping[str, Any] = field(default_factory=dict)
    """As in a recipe."""
    rate: float = 0.0
    """Learning rate: the best on seed 3 of those in methods.md. Methods that have none there use
    that of the most similar one: two methods the smaller of theirs, LoRA's experts LoRA's, gates
    those of VL-PET large."""
    norms: bool = False
    """Train the backbone's norms too."""
    meta: int = 0
    """So many of the run's steps are outer steps of meta-learning, which takes as long."""
    input: str = ""
    """The row whose run of the same seed this one starts from."""
    merge: str = ""
    """Instead of training, merge the adapters of the input run's tasks into one adapter for all:
    the `--how` of `vlds convert merge`."""


def entry(name: str, **fields: Any) -> dict[str, Any]:
    """A class and its settings, as recipes write them."""
    return {"class_path": name, "init_args": fields}


def method(name: str, **fields: Any) -> dict[str, Any]:
    """One entry of a recipe's `methods`."""
    return {name.lower(): entry(name, **fields)}


def adapter(sharing: str = "single") -> dict[str, Any]:
    """The demo's adapter."""
    return method("Adapter", reduction=8, init="identity", sharing=sharing)


def behind_ffn(sharing: str = "single") -> dict[str, Any]:
    """The adapter of recipes/related: behind feed-forward layers alone, twice as wide."""
    fields: dict[str, Any] = {"reduction": 4, "attention": False, "cross_attention": False}
    return method("Adapter", **fields, init="identity", sharing=sharing)


def mixture(of: str, **fields: Any) -> dict[str, Any]:
    """AdaMix with four experts, which share the up half or B."""
    return method("Mixture", of=entry(of, sharing="half_shared_up", **fields))


def vl_pet(gate: str) -> dict[str, Any]:
    """VL-PET in the sizes of recipes/related/demo_vl_pet.yaml."""
    sizes = {"gate_width": 16, "value_width": 16}
    return method("VLPET", of=entry("Adapter", reduction=8), gate=gate, start="zero", **sizes)


PROMPTS = method("PromptTuning", length=10, hidden_dim=128)
TASK_ADAPTERS = "Adapter, feed-forward, multiple"

METHODS = {
    "visual embedding alone": Row({}, 0.004),
    "norms": Row({}, 0.016, norms=True),
    "BitFit": Row(method("BitFit", add_biases=True), 0.016),
    "IA3": Row(method("IA3"), 0.016),
    "PromptTuning": Row(PROMPTS, 0.004),
    "PrefixTuning": Row(method("PrefixTuning", length=10, hidden_dim=128), 0.004),
    "LoRA": Row(method("LoRA", rank=8), 0.004),
    "LowRankAdapter": Row(method("LowRankAdapter", reduction=8, rank=1), 0.016),
    "Compacter": Row(method("Compacter", reduction=8, phm_dim=2), 0.016),
    "Hyperformer": Row(
        method("Hyperformer", reduction=8, task_dim=64, hidden_dim=64, projected_dim=8), 0.016
    ),
    "Adapter": Row(adapter(), 0.016),
    "Adapter, half_shared_up": Row(adapter("half_shared_up"), 0.016),
    "Adapter, half_shared_down": Row(adapter("half_shared_down"), 0.016),
    "Adapter, multiple": Row(adapter("multiple"), 0.016),
    "Adapter and PromptTuning": Row(adapter() | PROMPTS, 0.004),
    "Adapter and norms": Row(adapter(), 0.016, norms=True),
    "Full": Row(method("Full"), 0.00025),
}
"""VL-Adapter's methods, and others that need no more than a place."""

SYSTEMS = {
    "Adapter, feed-forward": Row(behind_ffn(), 0.016),
    TASK_ADAPTERS: Row(behind_ffn("multiple"), 0.004),
    "AdaMix over Adapter": Row(
        mixture("Adapter", reduction=4, attention=False, cross_attention=False), 0.004
    ),
    "AdaMix over LoRA": Row(mixture("LoRA", rank=8), 0.004),
    "VL-PET large": Row(vl_pet("large"), 0.004),
    "VL-PET small": Row(vl_pet("small"), 0.004),
    "LST": Row(method("LST", reduction=2), 0.001),
    "HyperPELT": Row(
        method(
            "HyperPELT", reduction=8, task_dim=32, hidden_dim=64, projected_dim=8, prefix_length=4
        ),
        0.001,
    ),
    "SimAdapter": Row(
        method("SimAdapter", runs=dict.fromkeys(("vqa", "gqa", "nlvr2", "caption"), INPUT)),
        0.004,
        input=TASK_ADAPTERS,
    ),
    "MetaAdapter": Row(adapter(), 0.016, meta=60),
    "MerA": Row(input=TASK_ADAPTERS, merge="transport"),
    "plain average": Row(input=TASK_ADAPTERS, merge="average"),
}
"""Related systems in the sizes of recipes/related, and the adapters that they use."""

YARDSTICKS = ("visual embedding alone", "LoRA", "Hyperformer", "Adapter", "Adapter, multiple")
ROWS = METHODS | SYSTEMS
TABLES = {"methods": [*METHODS], "related": [*YARDSTICKS, *SYSTEMS]}
"""Table -> its rows."""
REFERENCES = {"methods": "Full", "related": "Adapter"}
"""Table -> the row that the others are compared with."""
