"""A run's method as folders of peft or of adapters: settings and weights of one adapter each.

OUT/adapter_config.json, weights                 one for all tasks
OUT/TASK/adapter_config.json, weights            one each
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from vlds.artifact import LoadedRun
from vlds.convert.foreign_files import read_settings, read_weights
from vlds.convert.output import Kind, check_plain, first_names, say
from vlds.convert.target import RunFiles
from vlds.methods import Method
from vlds.methods.extended import added_tensors
from vlds.methods.layouts import Library, Stored
from vlds.models.joint_model import JointModel
from vlds.models.model import BACKBONE_PREFIX

CONFIG = "adapter_config.json"


class AdapterFolders(RunFiles):
    """How a library writes a run's method."""

    kind: ClassVar[Kind] = "folder"
    is_whole = False
    library: ClassVar[Library]
    weight_files: ClassVar[tuple[str, ...]]
    """Names that the file of weights may have; ours has the first."""

    def __init__(self, run: LoadedRun) -> None:
        """Errors: ValueError, with the reason, if the library cannot hold the run's method."""
        super().__init__(run)
        self.backbone = run.model.backbone
        self.name, self.method = self._only_method()
        self.layout = self.method.layout(self.library, self.name, self.backbone)
        self.state = {name: tensor.detach() for name, tensor in run.model.unique_state()}
        """Our tensors, tied ones once."""
        names = {f"{BACKBONE_PREFIX}{name}": stored for name, stored in self.layout.tensors.items()}
        self.stored = {name: stored for name, stored in names.items() if name in self.state}
        """Tensor of ours, as Model names it -> where it is stored."""

    def _only_method(self) -> tuple[str, Method]:
        run, library = self.run, self.library
        methods = {n: m for n, m in run.recipe.methods.items() if added_tensors(run.model, n)}
        for name, method in methods.items():
            reason = method.refusal(library, self.backbone)
            if reason is None and method.part == "vision" and isinstance(run.model, JointModel):
                reason = f"{library} knows the text backbone alone; use hf"
            if reason is not None:
                raise ValueError(f"methods.{name}: {reason}")
        if len(methods) != 1:
            raise ValueError(
                f"methods: {library}'s layout holds one method beside the backbone, the recipe has "
                f"{', '.join(methods) or 'none'}; `vlds convert hf` writes the backbone, "
                "`vlds convert merge` folds methods"
            )
        ((name, method),) = methods.items()
        return name, method

    @abstractmethod
    def config(self, adapter: str) -> dict[str, Any]:
        """The settings of an adapter, by its name."""

    @abstractmethod
    def check_config(self, config: Mapping[str, Any], file: Path) -> None:
        """Errors: ValueError if settings that were read differ from the recipe's."""

    @abstractmethod
    def write_weights(self, tensors: dict[str, Tensor], file: Path) -> None:
        """Write the file of weights."""

    def folders(self) -> list[tuple[str, str]]:
        """Folder below the top and name of the adapter, one for each slice of the weights."""
        tasks = self.run.recipe.tasks
        if getattr(self.method, "sharing", "single") == "single" or len(tasks) == 1:
            return [("", self.name)]
        return [(check_plain(task, "tasks"), task) for task in tasks]

    def write(self, out: Path) -> None:
        """Fill an empty folder."""
        if self.run.model.heads:
            say("left out: the tasks' heads, for which the library has no place; hf keeps them")
        for index, (below, adapter) in enumerate(self.folders()):
            folder = out / below
            folder.mkdir(exist_ok=True)
            text = json.dumps(self.config(adapter), indent=2, sort_keys=True)
            (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
            tensors = {
                key.format(task=adapter): piece(self.state[name], stored, index).clone()
                for name, stored in self.stored.items()
                for key in stored.keys
            }
            self.write_weights(tensors, folder / self.weight_files[0])

    def read(self, path: Path) -> dict[str, Tensor]:
        """Our tensors from all folders."""
        tensors = {name: torch.zeros(self.state[name].shape) for name in self.stored}
        for index, (below, adapter) in enumerate(self.folders()):
            folder = path / below
            config = read_settings(folder / CONFIG)
            self.check_config(config, folder / CONFIG)
            weights = read_weights(folder, *self.weight_files)
            adapter = str(config.get("name") or adapter)
            keys = {
                name: [key.format(task=adapter) for key in stored.keys]
                for name, stored in self.stored.items()
            }
            check_keys(weights, keys.values(), folder)
            for name, stored in self.stored.items():
                weight = next(weights[key] for key in keys[name] if key in weights)
                target = piece(tensors[name], stored, index)
                if weight.shape != target.shape or not weight.is_floating_point():
                    raise ValueError(
                        f"{keys[name][0]}: {weight.dtype} {tuple(weight.shape)} in {folder}, "
                        f"floats {tuple(target.shape)} by the recipe; the recipe's sizes must be "
                        "those of the files"
                    )
                is_shared = not stored.stacked or len(tensors[name]) == 1
                if is_shared and index > 0 and not torch.equal(target, weight.to(target.dtype)):
                    raise ValueError(
                        f"{name} differs from task to task, and is one by the recipe; give the "
                        "method sharing: multiple"
                    )
                target.copy_(weight)
        return tensors


def piece(tensor: Tensor, stored: Stored, index: int) -> Tensor:
    """A view of one task's slice of a tensor, or of what all tasks share, in the library's
    shape."""
    if stored.stacked:
        tensor = tensor[index if len(tensor) > 1 else 0]
    return tensor if stored.shape is None else tensor.view(stored.shape)


def check_keys(
    weights: Mapping[str, Tensor], keys: Collection[Sequence[str]], folder: Path
) -> None:
    """Errors: ValueError if none of a tensor's names is in a file, or an unknown name is."""
    missing = [names[0] for names in keys if not any(key in weights for key in names)]
    unknown = sorted(weights.keys() - {key for names in keys for key in names})
    if missing or unknown:
        raise ValueError(
            f"{folder} {'lacks' if missing else 'holds'} {first_names(missing or unknown, 1)}, "
            f"which the recipe's method {'has' if missing else 'lacks'}; its settings must be "
            "those of the files"
        )


def plain(loaded: LoadedRun) -> LoadedRun:
    """The run without what its methods need only in training, such as prompts' networks."""
    methods = dict(loaded.recipe.methods)
    for name, method in loaded.recipe.methods.items():
        if method.merges_to_itself:
            module = loaded.model.get_submodule(loaded.model.parts[method.part].path)
            methods.update(method.merge(name, module, list(loaded.recipe.tasks)))
    return replace(loaded, recipe=replace(loaded.recipe, methods=methods))
