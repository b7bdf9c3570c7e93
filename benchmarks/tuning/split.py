"""Makes several runs of one whose tasks have adapters of their own: each with one task's adapters
for all tasks, which `vlds convert merge` can then merge."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from vlds.artifact import load_run
from vlds.convert.combine import rebuilt
from vlds.convert.target import write_run
from vlds.methods import Adapter


@torch.no_grad()
def split(run: Path, out: Path) -> list[Path]:
    """Write one run per task below `out`, unless it is there; their folders."""
    loaded = load_run(run, torch.float32)
    ((name, method),) = loaded.recipe.methods.items()
    assert isinstance(method, Adapter), "the row's input has one adapter per task"
    recipe = replace(loaded.recipe, methods={name: replace(method, sharing="single")})
    state, folders = dict(loaded.model.unique_state()), []
    for number, task in enumerate(recipe.tasks):
        folders.append(out / task)
        if folders[-1].exists():
            continue
        single = rebuilt(loaded, recipe)
        for key, tensor in single.model.unique_state():
            stacked = state[key].shape != tensor.shape
            tensor.copy_(state[key][number, None] if stacked else state[key])
        folders[-1].parent.mkdir(parents=True, exist_ok=True)
        write_run(single, {}, folders[-1], None)
    return folders
