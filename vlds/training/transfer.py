"""Begins a run with the weights of another run's artifact: a second stage, transfer to other tasks,
few examples after a merge of adapters.

Tensors are found by name, and a method that is called otherwise by its class. Slices of what is
stacked over tasks, and heads, are found by the names of their tasks. What only one of the two runs
has is told; what has another shape is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from vlds.artifact import Rows, check_same_sources, check_weights, read_recipe, readable
from vlds.models.loading.resizing import Resizes, resized, resizes_of
from vlds.models.methods.host import ADDED
from vlds.models.model import Model
from vlds.models.partitioned import gathered
from vlds.models.roles import optimizer_rules
from vlds.recipe.config import Recipe
from vlds.runtime.artifact_files import WEIGHTS, artifact_folder
from vlds.runtime.json_files import recorded_hash

FIELD = "start"
SHOWN = 3
"""Tensors that a line names."""


@dataclass(frozen=True)
class Transfer:
    """Another run's weights for a recipe's model."""

    recipe: Recipe
    other: Recipe
    """Of the run that gives the weights."""
    folder: Path
    """Its artifact."""

    @classmethod
    def of(cls, recipe: Recipe) -> Transfer | None:
        """What the recipe begins with; None if it names no run.

        Errors: ValueError if the run cannot be read, or its frozen weights are others.
        """
        if recipe.start is None:
            return None
        try:
            folder = artifact_folder(Path(recipe.start))
            other = read_recipe(folder)
            check_same_sources(folder, other)
        except ValueError as error:
            raise ValueError(f"{FIELD}: {error}") from error
        here, there = recipe.model.source_hashes(), other.model.source_hashes()
        for part in sorted(here.keys() & there.keys()):
            if here[part] != there[part]:
                raise ValueError(
                    f"{FIELD}: {recipe.start} was trained on another {part} than the recipe's "
                    f"({other.model.sources[part]}, and here {recipe.model.sources[part]}): its "
                    "weights mean nothing there; name the same"
                )
        return cls(recipe, other, folder)

    @property
    def hash(self) -> str:
        """SHA-256 of the other run's weights."""
        return recorded_hash(self.folder, WEIGHTS)

    @cached_property
    def methods(self) -> dict[str, str]:
        """Method of the recipe -> the other run's method of its class: that of its name, or else
        the only one."""
        found = {
            name: name
            for name, method in self.recipe.methods.items()
            if type(self.other.methods.get(name)) is type(method)
        }
        for name, method in self.recipe.methods.items():
            alike = [
                each
                for each, theirs in self.other.methods.items()
                if type(theirs) is type(method) and theirs.part == method.part
            ]
            rest = [each for each in alike if each not in found.values()]
            if name not in found and len(rest) == 1:
                found[name] = rest[0]
        return found

    def name_there(self, name: str) -> str:
        """What the other run calls a tensor of the recipe's model."""
        segments = name.split(".")
        # The outermost module of a method decides: its own modules may be called like methods.
        place = next((n for n, segment in enumerate(segments) if segment in ADDED), None)
        if place is not None and place + 1 < len(segments):
            method = segments[place + 1]
            segments[place + 1] = self.methods.get(method, method)
        return ".".join(segments)

    def fill(self, model: Model, is_resumed: bool = False) -> list[str]:
        """Give a model the other run's weights; what to say of it. Of a run that resumes, a state
        holds what trains: only frozen weights are filled. Collective under ZeRO-3.

        Errors: ValueError if a tensor has another shape, or none fits.
        """
        with readable(self.folder, WEIGHTS):
            stored = load_file(self.folder / WEIGHTS)
        return self._filled(model, stored, is_resumed)

    def fit(self, model: Model) -> list[str]:
        """As `fill`, by the shapes of a model on the meta device: reads no weights.

        Errors: as `fill`.
        """
        with readable(self.folder, WEIGHTS), safe_open(self.folder / WEIGHTS, "pt") as file:
            keys = list(file.keys())
            shapes = {key: file.get_slice(key).get_shape() for key in keys}
        stored = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
        return self._filled(model, stored, is_resumed=False)

    @torch.no_grad()
    def _filled(self, model: Model, stored: Mapping[str, Tensor], is_resumed: bool) -> list[str]:
        stacks = {name for name, rule in optimizer_rules(model).items() if rule.per_task}
        parameters = {name for name, _ in model.named_parameters()}
        resizes = resizes_of(model)
        used: set[str] = set()
        whole: list[str] = []
        changed: list[str] = []
        drawn: list[str] = []
        numbers = Counter[str]()
        has_slices = False
        for name, tensor in model.unique_state():
            rows: Rows = ...
            key = self.name_there(name)
            if key not in stored and name in model.sources.rows:
                start = model.sources.rows[name]
                rows, key = slice(start, None), f"{key}[{start}:]"
            if (values := stored.get(key)) is None:
                drawn += [name] if name in model.trained_by else []
                continue
            used.add(key)
            if not values.is_meta:
                check_weights(self.folder, key, values, name in parameters)
            numbers[model.part_of(name)] += values.numel()
            has_slices |= name in stacks and len(values) > 1
            if rows is ...:
                whole.append(name)
            if is_resumed and name in model.moving_names():
                continue
            with gathered([tensor], written=True):
                changed += [name] * self._copy(name, tensor[rows], values, name in stacks, resizes)
        model.forget_sources(whole)
        if not numbers:
            raise ValueError(
                f"{FIELD}: no weight of {self.recipe.start} has a place in the recipe's model, "
                f"which trains {', '.join(sorted(set(model.trained_by.values())))}; name a run of "
                "the same methods"
            )
        lines = [*self._told(model, numbers, drawn, sorted(stored.keys() - used))]
        if changed:
            lines.append(f"{FIELD}: resized: {', '.join(changed)}")
        return [*lines, *(self._tasks_told() if has_slices else ()), *self._settings_told()]

    def _copy(
        self, name: str, target: Tensor, values: Tensor, is_stack: bool, resizes: Resizes
    ) -> bool:
        """Write values into a tensor of the model, those of a task into the slice of its name. True
        if they had another size."""
        if not is_stack or len(target) == len(values) == 1:
            fitting = resized(name, values, target.shape, resizes)
            if target.shape != fitting.shape:
                raise ValueError(self._misfit(name, target, values))
            target.copy_(fitting)
            return fitting is not values
        if target.shape[1:] != values.shape[1:]:
            raise ValueError(self._misfit(name, target, values))
        here, there = list(self.recipe.tasks), list(self.other.tasks)
        if len(values) == 1:
            target.copy_(values.expand_as(target))  # what tasks shared there, each begins with
        elif len(target) == len(here):
            for number, task in enumerate(here):
                if task in there:
                    target[number].copy_(values[there.index(task)])
        else:
            raise ValueError(
                f"{FIELD}: in {self.recipe.start}, each task has its own {name}, which tasks "
                "share here; choose one: vlds convert merge --how take --task "
                f"{there[0]} --run {self.recipe.start} --out OUT"
            )
        return False

    def _misfit(self, name: str, target: Tensor, values: Tensor) -> str:
        shapes = (" x ".join(map(str, each.shape)) or "one number" for each in (values, target))
        sizes = ", and here ".join(shapes)
        return (
            f"{FIELD}: {name} is {sizes} in the recipe's model, but the weights of "
            f"{self.recipe.start} are of another size; give the sizes of its recipe, or leave "
            f"{FIELD} out"
        )

    def _told(
        self, model: Model, numbers: Mapping[str, int], drawn: list[str], left: list[str]
    ) -> Iterator[str]:
        """What came over, and which tensors did not."""
        amounts = ", ".join(f"{count:,} of {part}" for part, count in numbers.items())
        yield f"{FIELD}: weights of {self.recipe.start}: {amounts}"
        if drawn:
            parts = Counter(model.trained_by[name] for name in drawn)
            listed = ", ".join(f"{part} ({count} tensors)" for part, count in parts.items())
            yield f"{FIELD}: drawn, since {self.recipe.start} has none: {listed}"
        if left:
            more = f" and {len(left) - SHOWN} more tensors" if len(left) > SHOWN else ""
            yield f"{FIELD}: left over in {self.recipe.start}: {', '.join(left[:SHOWN])}{more}"

    def _tasks_told(self) -> Iterator[str]:
        """Tasks of one run alone, whose slices of weights have no counterpart."""
        here, there = self.recipe.tasks.keys(), self.other.tasks.keys()
        if new := [task for task in here if task not in there]:
            yield f"{FIELD}: drawn, since {self.recipe.start} has no such task: {', '.join(new)}"
        if old := [task for task in there if task not in here]:
            yield f"{FIELD}: left over in {self.recipe.start}: its tasks {', '.join(old)}"

    def _settings_told(self) -> Iterator[str]:
        """Settings of methods that differ between the runs, without the places of further runs."""
        for name, there in self.methods.items():
            ours, theirs = self.recipe.methods[name].in_artifact(), self.other.methods[there]
            for each in fields(ours):
                pair = getattr(ours, each.name), getattr(theirs, each.name)
                if pair[0] != pair[1]:
                    yield (
                        f"{FIELD}: methods.{name}.{each.name} is {pair[0]!r:.60} here and "
                        f"{pair[1]!r:.60} in {self.recipe.start}"
                    )
