"""What the layouts of peft and adapters have in common: one folder of settings and weights for one
method of the backbone, or one a task where tasks have weights of their own.

    OUT/adapter_config.json, weights                 one for all tasks
    OUT/TASK/adapter_config.json, weights            one each
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlds.artifact import LoadedRun, load_run
from vlds.config import Recipe
from vlds.convert.foreign_files import read_json, read_weights
from vlds.convert.output import check_plain, follow, new_folder, say
from vlds.convert.target import Target, adds_tensors, scrub
from vlds.convert.verify import Verification, all_tasks
from vlds.methods import Method, PromptTuning

CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class There:
    """Where one slice of a tensor of ours stands in their file."""

    keys: tuple[str, ...]
    """Its names: more than one for aliases."""
    shape: tuple[int, ...]


Places = Mapping[str, There]
"""Tensor of ours, as VLModel names it -> where it stands."""


@dataclass(frozen=True)
class Layout:
    """How one method of one run is written by one library."""

    library: str
    recipe: Recipe
    method: Method
    places: Callable[[str], Places]
    """Name of the adapter -> where all of the method's tensors are."""
    config: Callable[[str], dict[str, Any]]
    """Name of the adapter -> its settings."""
    check_config: Callable[[Mapping[str, Any], Path], None]
    """Errors: ValueError where settings that were read are not those of the recipe."""
    own_name: str
    """Name of an adapter of all tasks."""
    weight_files: tuple[str, ...]
    """Names that the file of weights may have."""
    write_weights: Callable[[dict[str, Tensor], Path], None]

    def folders(self) -> list[tuple[str, str, int]]:
        """Folder below the top, name of the adapter, number of its slice."""
        apart = getattr(self.method, "sharing", "single") != "single" and len(self.recipe.tasks) > 1
        if not apart:
            return [("", self.own_name, 0)]
        return [
            (check_plain(task, "tasks"), task, number)
            for number, task in enumerate(self.recipe.tasks)
        ]


def only_method(
    run: LoadedRun, known: tuple[type[Method], ...], library: str, reasons: Mapping[type, str]
) -> tuple[str, Method]:
    """Name and settings of the run's one method beside the backbone.

    Errors: ValueError, with the reason, where the library cannot have what the run has.
    """
    beside = {n: m for n, m in run.recipe.methods.items() if adds_tensors(run.model, n)}
    for name, method in beside.items():
        if not isinstance(method, known):
            reason = reasons.get(type(method), f"{library} has no {type(method).__name__}")
            raise ValueError(f"methods.{name}: {reason}")
        if method.part == "vision":
            raise ValueError(f"methods.{name}: {library} knows the text backbone alone; use hf")
    if len(beside) != 1:
        found = ", ".join(beside) or "none"
        raise ValueError(
            f"methods: {library}'s layout holds one method beside the backbone, the recipe has "
            f"{found}; `vlds convert hf` writes the backbone, `vlds convert merge` folds methods"
        )
    ((name, method),) = beside.items()
    return name, method


def plain(loaded: LoadedRun) -> LoadedRun:
    """The run, with prompts as their network makes them, without the network."""
    methods = {
        name: method.merge(name, loaded.model.backbone, list(loaded.recipe.tasks))
        if isinstance(method, PromptTuning)
        else method
        for name, method in loaded.recipe.methods.items()
    }
    return replace(loaded, recipe=replace(loaded.recipe, methods=methods))


def export_folders(
    run: Path,
    out: Path,
    layout_of: Callable[[LoadedRun], Layout],
    verification: Verification | None,
) -> None:
    """Write a run's method as folders of a library.

    Errors: ValueError where the library has no such method.
    """
    say(f"opening {run}")
    loaded = plain(load_run(run, torch.float32))
    layout = layout_of(loaded)
    with new_folder(out) as partial:
        write_folders(loaded, layout, partial)
        if verification is not None:
            again = plain(load_run(run, torch.float32))
            scrub(again.model)
            again.model.load_state_dict(
                {n: t for n, t in loaded.model.state_dict().items() if n not in layout.places("-")}
                | gathered(partial, layout, again),
                strict=False,
            )
            verification.compare(all_tasks(loaded), again)


def write_folders(run: LoadedRun, layout: Layout, out: Path) -> None:
    """Fill an empty folder."""
    for below, name, number in follow(layout.folders(), f"writing files of {layout.library}"):
        folder = out / below
        folder.mkdir(exist_ok=True)
        text = json.dumps(layout.config(name), indent=2, sort_keys=True)
        (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
        tensors = slices(run, layout.places(name), number)
        layout.write_weights(tensors, folder / layout.weight_files[0])


def import_folders(
    folder: Path,
    target: Target,
    out: Path,
    layout_of: Callable[[LoadedRun], Layout],
    verification: Verification | None,
) -> None:
    """Write the artifact of a recipe whose method's weights a library has written.

    Errors: ValueError where they are not the recipe's.
    """
    layout = layout_of(target.run)
    target.fill(gathered(folder, layout, target.run), folder)
    target.write(out, verification)


def slices(run: LoadedRun, places: Places, number: int) -> dict[str, Tensor]:
    """One task's tensors under their names."""
    state, found = run.model.state_dict(), {}
    for name, there in places.items():
        tensor = part(state[name], number).reshape(there.shape)
        found.update({key: tensor.clone() for key in there.keys})
    return found


def part(tensor: Tensor, number: int) -> Tensor:
    """One task's slice of a tensor that is stacked over tasks, or the one that all share; norms are
    not stacked."""
    return tensor if tensor.dim() == 1 else tensor[number if len(tensor) > 1 else 0]


def gathered(folder: Path, layout: Layout, run: LoadedRun) -> dict[str, Tensor]:
    """Our tensors from all folders of a library.

    Errors: ValueError where a file is missing, or holds other tensors than the recipe's.
    """
    state = run.model.state_dict()
    found: dict[str, list[Tensor]] = {}
    for below, wanted_name, _ in follow(layout.folders(), f"reading {folder}"):
        place = folder / below
        config = read_json(place / CONFIG)
        layout.check_config(config, place / CONFIG)
        weights = read_weights(place, *layout.weight_files)
        places = layout.places(str(config.get("name") or wanted_name))
        check_keys(weights, places, place)
        for name, there in places.items():
            tensor = weights[next(key for key in there.keys if key in weights)]
            if tuple(tensor.shape) != there.shape or not tensor.is_floating_point():
                raise ValueError(
                    f"{there.keys[0]}: {tensor.dtype} {tuple(tensor.shape)} in {place}, floats "
                    f"{there.shape} by the recipe; the recipe's sizes must be those of the files"
                )
            found.setdefault(name, []).append(tensor)
    return {name: joined(name, pieces, state[name]) for name, pieces in found.items()}


def check_keys(weights: Mapping[str, Tensor], places: Places, folder: Path) -> None:
    """Errors: ValueError where a file lacks a tensor, or has one without a place."""
    known = {key for there in places.values() for key in there.keys}
    lacking = [t.keys[0] for t in places.values() if not any(key in weights for key in t.keys)]
    if odd := lacking or sorted(weights.keys() - known):
        raise ValueError(
            f"{folder} {'lacks' if lacking else 'holds'} {odd[0]}"
            f"{f' and {len(odd) - 1} more tensors' if len(odd) > 1 else ''}, which the recipe's "
            f"method {'has' if lacking else 'lacks'}; its settings must be those of the files"
        )


def joined(name: str, pieces: Sequence[Tensor], target: Tensor) -> Tensor:
    """The slices of all folders as one tensor.

    Errors: ValueError where folders differ in what tasks share.
    """
    if target.dim() > 1 and len(target) == len(pieces) > 1:
        return torch.stack([p.reshape(target.shape[1:]) for p in pieces])
    if any(not torch.equal(pieces[0], piece) for piece in pieces[1:]):
        raise ValueError(
            f"{name} differs from task to task, and is one by the recipe; give the method "
            "sharing: multiple"
        )
    return pieces[0].reshape(target.shape)
