"""Counts the operations of a micro-batch at T5-base's size, forward and backward, on a GPU.

    python benchmarks/operations.py

A GPU starts each operation alone, and idles where Python sends them more slowly than it computes.
The model's code runs on tensors without numbers, so this takes seconds a method. A batch has rows
of three tasks. The table goes to stdout.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent / "training"))
import ours
from shapes import Case, random_batch

from vlds.models.build import build_model
from vlds.models.methods import (
    IA3,
    LST,
    VLPET,
    Adapter,
    Compacter,
    Full,
    Hyperformer,
    LoRA,
    LowRankAdapter,
    Method,
    PrefixTuning,
    PromptTuning,
)
from vlds.plan.rehearsal import rehearse
from vlds.tasks import VQA

METHODS: dict[str, Method] = {
    "Full": Full(),
    "Adapter": Adapter(),
    "Adapter, one a task": Adapter(sharing="multiple"),
    "Hyperformer": Hyperformer(),
    "Compacter": Compacter(),
    "Compacter, one a task": Compacter(sharing="multiple"),
    "LowRankAdapter": LowRankAdapter(),
    "LoRA": LoRA(),
    "LoRA, one a task": LoRA(sharing="multiple"),
    "VLPET": VLPET(),
    "IA3": IA3(),
    "PromptTuning": PromptTuning(),
    "PrefixTuning": PrefixTuning(),
    "LST": LST(),
}


def operations(method: Method) -> int:
    """Of a micro-batch in bf16."""
    case = Case(model="t5-base", method="Adapter", batch=6, precision="bf16", dropout=0.1)
    with tempfile.TemporaryDirectory() as folder:
        recipe, words = ours.recipe_of(case, Path(folder))
        recipe = replace(recipe, methods={"method": method}, tasks=dict.fromkeys("abc", VQA()))
        with torch.device("meta"):
            model = build_model(recipe.model_setup, list(recipe.tasks), torch.bfloat16, words)
    batch = replace(
        ours.batch_of(case, random_batch(case, 0)), task_index=torch.arange(case.batch) % 3
    )
    return rehearse(model, batch, on_gpu=True).work.calls


def main() -> None:
    counts = {name: operations(method) for name, method in METHODS.items()}
    print("| method | operations | of Full's |\n|---|---:|---:|")
    for name, count in counts.items():
        print(f"| {name} | {count:,} | {count / counts['Full']:.2f} |")


if __name__ == "__main__":
    main()
