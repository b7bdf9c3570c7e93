"""What a method takes from artifacts of other runs: their adapters.

Uses: fusion over the adapters of several runs; a start from the adapters of another run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from vlds.methods.adapter import Adapter
from vlds.runtime.manifest import DESCRIPTION, damage
from vlds.runtime.yaml_file import read_yaml

WEIGHTS, RECIPE = "weights.safetensors", "recipe.yaml"


@dataclass(frozen=True)
class RunAdapter:
    """The adapters of one run, or of one of its tasks."""

    method: Adapter
    """Their settings, as those of adapters that all tasks share."""
    tensors: Mapping[str, Mapping[str, Tensor]]
    """Layer of the backbone -> name of a tensor in the module behind it -> tensor, with one slice
    where tensors are stacked."""


def read_adapter(run: Path, task: str) -> RunAdapter:
    """The adapters of a run; those of `task`, if the run has some for each task.

    Errors: ValueError if the run has no artifact, not exactly one Adapter on its backbone, or no
    such task.
    """
    folder = run / "artifact" if (run / "artifact" / DESCRIPTION).exists() else run
    if not (folder / DESCRIPTION).exists():
        raise ValueError(f"{run} holds no artifact; name the folder that `vlds train` wrote")
    if (wrong := damage(folder, (RECIPE, WEIGHTS))) is not None:
        raise ValueError(f"artifact {folder}: {wrong}; copy it again from where it was trained")
    recipe = read_yaml(folder / RECIPE)
    name, method = adapter_of(recipe["methods"], run)
    number = slice_of(method, list(recipe["tasks"]), task, run)
    pattern = re.compile(rf"backbone\.(.+)\.extensions\.{name}\.(.+)")
    tensors: dict[str, dict[str, Tensor]] = {}
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 (safetensors' file is no mapping)
            if match := pattern.fullmatch(key):
                tensor = file.get_tensor(key)
                if "norm" not in match[2] and len(tensor) > 1:
                    tensor = tensor[number : number + 1]
                tensors.setdefault(match[1], {})[match[2]] = tensor
    return RunAdapter(replace(method, sharing="single", learning_rate=None), tensors)


def adapter_of(methods: Mapping[str, Any], run: Path) -> tuple[str, Adapter]:
    """Name and settings of a run's one Adapter on the backbone."""
    known = {field.name for field in fields(Adapter)}
    found = [
        (name, Adapter(**{k: v for k, v in entry["init_args"].items() if k in known}))
        for name, entry in methods.items()
        if entry["class_path"] == Adapter.__name__ and entry["init_args"]["part"] == "backbone"
    ]
    if len(found) != 1:
        kinds = ", ".join(entry["class_path"] for entry in methods.values()) or "none"
        raise ValueError(
            f"{run}: its methods are {kinds}; name a run with one Adapter on its backbone "
            "(`vlds convert merge` makes Compacter, LowRankAdapter, Hyperformer and Mixture one)"
        )
    return found[0]


def slice_of(method: Adapter, tasks: list[str], task: str, run: Path) -> int:
    """Number of a task's slice of stacked weights."""
    if method.sharing == "single":
        return 0
    if task not in tasks:
        raise ValueError(
            f"{run}: its adapters are one for each task, and it has no task {task}; name one of "
            f"{', '.join(tasks)}"
        )
    return tasks.index(task)
