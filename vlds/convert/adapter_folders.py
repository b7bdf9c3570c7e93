"""A run's method as folders of peft or of adapters: settings and weights of one adapter each.

OUT/adapter_config.json, weights                 one for all tasks
OUT/TASK/adapter_config.json, weights            one each
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from vlds.artifact import LoadedRun, load_run
from vlds.convert.foreign_files import read_settings, read_weights
from vlds.convert.output import check_plain, follow, new_folder, say
from vlds.convert.target import Target, scrub
from vlds.convert.verify import Verification, all_tasks
from vlds.methods import Method
from vlds.methods.extended import added_tensors
from vlds.methods.layouts import Library, Stored
from vlds.models.build import BACKBONE_PREFIX

CONFIG = "adapter_config.json"


class AdapterFolders(ABC):
    """How a library writes a run's method."""

    library: ClassVar[Library]
    weight_files: ClassVar[tuple[str, ...]]
    """Names that the file of weights may have; ours has the first."""

    def __init__(self, run: LoadedRun) -> None:
        """Errors: ValueError, with the reason, if the library cannot hold the run's method."""
        self.run = run
        self.name, self.method = self._only_method()
        self.layout = self.method.layout(self.library, self.name, run.model.backbone)
        self.state = {name: tensor.detach() for name, tensor in run.model.unique_state()}
        """Our tensors, tied ones once."""
        names = {f"{BACKBONE_PREFIX}{name}": stored for name, stored in self.layout.tensors.items()}
        self.stored = {name: stored for name, stored in names.items() if name in self.state}
        """Tensor of ours, as VLModel names it -> where it is stored."""

    def _only_method(self) -> tuple[str, Method]:
        run, library = self.run, self.library
        methods = {n: m for n, m in run.recipe.methods.items() if added_tensors(run.model, n)}
        for name, method in methods.items():
            reason = method.refusal(library, run.model.backbone)
            if reason is None and method.part == "vision":
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
        folders = list(enumerate(self.folders()))
        for index, (below, adapter) in follow(folders, f"writing files of {self.library}"):
            folder = out / below
            folder.mkdir(exist_ok=True)
            text = json.dumps(self.config(adapter), indent=2, sort_keys=True)
            (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
            tensors = {
                key.format(task=adapter): self._piece(name, index).clone()
                for name, stored in self.stored.items()
                for key in stored.keys
            }
            self.write_weights(tensors, folder / self.weight_files[0])

    def read(self, top: Path) -> dict[str, Tensor]:
        """Our tensors from all folders.

        Errors: ValueError if a file is missing, or holds other tensors than the recipe's.
        """
        pieces: dict[str, list[Tensor]] = {name: [] for name in self.stored}
        for below, adapter in follow(self.folders(), f"reading {top}"):
            folder = top / below
            config = read_settings(folder / CONFIG)
            self.check_config(config, folder / CONFIG)
            weights = read_weights(folder, *self.weight_files)
            adapter = str(config.get("name") or adapter)
            keys = {
                name: [key.format(task=adapter) for key in stored.keys]
                for name, stored in self.stored.items()
            }
            check_keys(weights, keys.values(), folder)
            for name in self.stored:
                key = next(key for key in keys[name] if key in weights)
                expected, tensor = self._piece(name, 0).shape, weights[key]
                if tensor.shape != expected or not tensor.is_floating_point():
                    raise ValueError(
                        f"{keys[name][0]}: {tensor.dtype} {tuple(tensor.shape)} in {folder}, "
                        f"floats {tuple(expected)} by the recipe; the recipe's sizes must be those "
                        "of the files"
                    )
                pieces[name].append(tensor)
        return {
            name: joined(name, pieces[name], self.state[name], self.stored[name]) for name in pieces
        }

    def _piece(self, name: str, index: int) -> Tensor:
        """One task's slice of a tensor, or what all share, in the library's shape."""
        stored, tensor = self.stored[name], self.state[name]
        if stored.stacked:
            tensor = tensor[index if len(tensor) > 1 else 0]
        return tensor if stored.shape is None else tensor.reshape(stored.shape)


def check_keys(
    weights: Mapping[str, Tensor], keys: Collection[Sequence[str]], folder: Path
) -> None:
    """Errors: ValueError if a file lacks a tensor, by all of its names, or has an unknown one."""
    missing = [names[0] for names in keys if not any(key in weights for key in names)]
    unknown = sorted(weights.keys() - {key for names in keys for key in names})
    if odd := missing or unknown:
        raise ValueError(
            f"{folder} {'lacks' if missing else 'holds'} {odd[0]}"
            f"{f' and {len(odd) - 1} more tensors' if len(odd) > 1 else ''}, which the recipe's "
            f"method {'has' if missing else 'lacks'}; its settings must be those of the files"
        )


def joined(name: str, pieces: Sequence[Tensor], target: Tensor, stored: Stored) -> Tensor:
    """The slices of all folders as one tensor.

    Errors: ValueError if folders differ in what tasks share.
    """
    if stored.stacked and len(target) == len(pieces) > 1:
        return torch.stack([piece.reshape(target.shape[1:]) for piece in pieces])
    if any(not torch.equal(pieces[0], piece) for piece in pieces[1:]):
        raise ValueError(
            f"{name} differs from task to task, and is one by the recipe; give the method "
            "sharing: multiple"
        )
    return pieces[0].reshape(target.shape)


def plain(loaded: LoadedRun) -> LoadedRun:
    """The run without what its methods needed for training only, such as prompts' networks."""
    methods = dict(loaded.recipe.methods)
    for name, method in methods.items():
        if method.merges_to_itself:
            plainer = method.merge(name, loaded.model.backbone, list(loaded.recipe.tasks))
            methods[name] = plainer or method
    return replace(loaded, recipe=replace(loaded.recipe, methods=methods))


def export_folders(
    run: Path,
    out: Path,
    folders_of: Callable[[LoadedRun], AdapterFolders],
    verification: Verification | None,
) -> None:
    """Write a run's method as folders of a library.

    Errors: ValueError if the library has no such method.
    """
    say(f"opening {run}")
    loaded = plain(load_run(run, torch.float32))
    folders = folders_of(loaded)
    with new_folder(out) as partial:
        folders.write(partial)
        if verification is not None:
            again = plain(load_run(run, torch.float32))
            scrub(again.model)
            others = {n: t for n, t in loaded.model.state_dict().items() if n not in folders.stored}
            read = folders_of(again).read(partial)
            again.model.load_state_dict(others | read, strict=False)
            verification.compare(all_tasks(loaded), again)


def import_folders(
    folder: Path,
    target: Target,
    out: Path,
    folders_of: Callable[[LoadedRun], AdapterFolders],
    verification: Verification | None,
) -> None:
    """Write the artifact of a recipe whose method's weights a library has written.

    Errors: ValueError if they are not the recipe's.
    """
    target.fill(folders_of(target.run).read(folder), folder)
    target.write(out, verification)
