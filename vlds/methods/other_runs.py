"""What a method takes from artifacts of other runs: their adapters, or their networks.

Uses: fusion over the adapters of several runs; a start from the adapters or networks of another
run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from vlds.methods.adapter import Adapter
from vlds.methods.base import Method
from vlds.runtime.checks import check_numbers
from vlds.runtime.manifest import DESCRIPTION, damage, recorded_hash
from vlds.runtime.yaml_file import read_yaml

WEIGHTS, RECIPE = "weights.safetensors", "recipe.yaml"


@dataclass(frozen=True)
class RunMethod:
    """A method of another run."""

    settings: Mapping[str, Any]
    """Its fields, as plain values."""
    tasks: list[str]
    """The run's tasks, in the order of stacked weights."""
    tensors: Mapping[str, Mapping[str, Tensor]]
    """Layer of the backbone, empty for what stands beside it -> name of a tensor in the method's
    module there -> tensor."""


def read_method(run: Path, kind: type[Method], cure: str) -> RunMethod:
    """The one method of a kind that a run has on its backbone.

    Errors: ValueError if the run has no artifact, or not exactly one such method, and ends in
    `cure`; or if a weight is not finite.
    """
    folder = artifact_of(run)
    if (wrong := damage(folder, (RECIPE, WEIGHTS))) is not None:
        raise ValueError(f"artifact {folder}: {wrong}; copy it again from where it was trained")
    recipe = read_yaml(folder / RECIPE)
    try:
        kinds = {name: str(entry["class_path"]) for name, entry in recipe["methods"].items()}
        settings = {name: dict(entry["init_args"]) for name, entry in recipe["methods"].items()}
        tasks = list(recipe["tasks"])
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError(f"artifact {folder}: {RECIPE} is no recipe of a run; {cure}") from None
    on_backbone = {name for name, own in settings.items() if own.get("part") == "backbone"}
    names = [name for name in kinds if kinds[name] == kind.__name__ and name in on_backbone]
    if len(names) != 1:
        raise ValueError(f"{run}: its methods are {', '.join(kinds.values()) or 'none'}; {cure}")
    pattern = re.compile(rf"backbone\.(?:(.+)\.)?extensions\.{re.escape(names[0])}\.(.+)")
    tensors: dict[str, dict[str, Tensor]] = {}
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 (safetensors' file is no mapping)
            if match := pattern.fullmatch(key):
                tensors.setdefault(match[1] or "", {})[match[2]] = tensor = file.get_tensor(key)
                if not tensor.isfinite().all():
                    raise ValueError(f"{run}: {key} is not finite; name another run")
    return RunMethod(settings[names[0]], tasks, tensors)


def artifact_of(run: Path) -> Path:
    """The folder of a run's artifact.

    Errors: ValueError if there is none.
    """
    folder = run / "artifact" if (run / "artifact" / DESCRIPTION).exists() else run
    if not (folder / DESCRIPTION).exists():
        raise ValueError(f"{run} holds no artifact; name the folder that `vlds train` wrote")
    return folder


def weights_hash(run: Path) -> str:
    """SHA-256 of the weights of a run's artifact, as its manifest has it."""
    return recorded_hash(artifact_of(run), WEIGHTS)


@dataclass(frozen=True)
class RunAdapter:
    """The adapters of one run, or of one of its tasks."""

    method: Adapter
    """Their settings, as those of adapters that all tasks share."""
    tensors: Mapping[str, Mapping[str, Tensor]]
    """Layer of the backbone -> name of a tensor in the module behind it -> tensor, with one slice
    where tensors are stacked."""

    def behind(self, path: str) -> Mapping[str, Tensor]:
        """The tensors behind a layer of the part that methods tune, which may be the backbone or
        lie inside it."""
        layers = (layer for layer in self.tensors if f".{layer}".endswith(f".{path}"))
        return next((self.tensors[layer] for layer in layers), {})


def read_adapter(run: Path, task: str) -> RunAdapter:
    """The adapters of a run; those of `task`, if the run has some for each task.

    Errors: ValueError if the run has no artifact, not exactly one Adapter on its backbone, or no
    such task.
    """
    found = read_method(
        run,
        Adapter,
        "name a run with one Adapter on its backbone (`vlds convert merge` makes Compacter, "
        "LowRankAdapter, Hyperformer and Mixture one)",
    )
    try:
        check_numbers(Adapter, found.settings)
        method = Adapter(**found.settings)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{run}: its Adapter has settings that this vlds cannot use ({error}); take the "
            "version of vlds that wrote it"
        ) from None
    number = slice_of(method, found.tasks, task, run)
    tensors = {
        layer: {
            name: tensor[number : number + 1] if "norm" not in name and len(tensor) > 1 else tensor
            for name, tensor in own.items()
        }
        for layer, own in found.tensors.items()
    }
    return RunAdapter(replace(method, sharing="single", learning_rate=None), tensors)


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
