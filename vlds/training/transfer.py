"""Begins a run with the weights of another run's artifact: a second stage, transfer to other tasks,
few examples after a merge of adapters.

Tensors are found by name, and a method that is called otherwise by its class. Slices of what is
stacked over tasks, and heads, are found by the names of their tasks. What only one of the two runs
has is told. What would mean another thing here is refused: other shapes, heads of other classes,
and weights that were trained beside the frozen ones of a further run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import zip_longest
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from vlds.artifact import Rows, check_same_sources, check_weights, read_recipe, readable
from vlds.models.heads.texts import TextClasses
from vlds.models.loading.resizing import Resizes, resized, resizes_of
from vlds.models.methods.host import ADDED
from vlds.models.model import Model
from vlds.models.partitioned import gathered
from vlds.models.roles import optimizer_rules
from vlds.recipe.config import Recipe
from vlds.runtime.artifact_files import WEIGHTS, artifact_folder, model_line
from vlds.runtime.json_files import recorded_hash

FIELD = "start"
SHOWN = 3
"""Tensors that a line names."""
LONGEST = 60
"""Letters of a value that a line shows."""


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

    @cached_property
    def runs_named(self) -> dict[str, str]:
        """Method of the recipe that keeps weights of further runs frozen -> the fields that name
        these."""
        hashes = {name: self.recipe.methods[name].source_hashes() for name in self.methods}
        return {name: ", ".join(fields) for name, fields in hashes.items() if fields}

    def name_there(self, name: str) -> str:
        """What the other run calls a tensor of the recipe's model."""
        if (method := self.method_of(name)) not in self.methods:
            return name
        segments = name.split(".")
        segments[place_of_method(segments)] = self.methods[method]
        return ".".join(segments)

    def method_of(self, name: str) -> str:
        """The recipe's method that has added a tensor; "" if none has."""
        segments = name.split(".")
        place = place_of_method(segments)
        return segments[place] if 0 < place < len(segments) else ""

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
        moving = model.moving_names()
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
            self._check_classes(model, name)
            if not values.is_meta:
                check_weights(self.folder, key, values, name in parameters)
            numbers[model.part_of(name)] += values.numel()
            has_slices |= name in stacks and len(values) > 1
            if rows is ...:
                whole.append(name)
            if is_resumed and name in moving:
                continue
            with gathered([tensor], written=True):
                if name not in moving:
                    self._check_taken(name, tensor, values)
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

    def _check_classes(self, model: Model, name: str) -> None:
        """Errors: ValueError if a tensor is of a head whose weights belong to other classes."""
        part, *rest = name.split(".")
        if part != "heads" or not has_class_weights(model.heads[rest[0]]):
            return
        task = rest[0]
        ours, theirs = self.recipe.tasks[task].own_head, self.other.tasks[task].own_head
        if ours is None or theirs is None or (here := ours.names) == (there := theirs.names):
            return
        pairs = enumerate(zip_longest(here, there, fillvalue="none"))
        number, (one, other) = next((n, pair) for n, pair in pairs if pair[0] != pair[1])
        raise ValueError(
            f"{FIELD}: the weights of heads.{task} belong to the classes of {self.recipe.start}, "
            f"and class {number} is {other!r:.60} there and {one!r:.60} here; give tasks.{task} "
            "these classes in their order, or call it otherwise, so that its head is drawn"
        )

    def _check_taken(self, name: str, ours: Tensor, theirs: Tensor) -> None:
        """Errors: ValueError if a method has taken a frozen tensor from a run that the recipe
        names, and `theirs` is another one."""
        method = self.method_of(name)
        if method not in self.runs_named or theirs.is_meta or ours.shape != theirs.shape:
            return
        # Either may have been rounded to bf16.
        if not torch.allclose(ours.float(), theirs.float(), rtol=2**-7):
            raise ValueError(
                f"{FIELD}: methods.{method} has trained beside other frozen weights in "
                f"{self.recipe.start} than those of {self.runs_named[method]} ({name} differs); "
                f"name the runs that it named, or leave {FIELD} out"
            )

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
        kinds = [type(recipe.model).__name__ for recipe in (self.other, self.recipe)]
        cure = "give the sizes of its recipe"
        if kinds[0] != kinds[1]:
            cure = f"it has a {kinds[0]}, and the recipe a {kinds[1]}: name a run of that"
        elif (method := self.method_of(name)) in self.recipe.methods:
            cure = self.recipe.methods[method].cure_of_sizes
        return f"{FIELD}: in {self.recipe.start}, {name} is {sizes}; {cure}, or leave {FIELD} out"

    def _told(
        self, model: Model, numbers: Mapping[str, int], drawn: list[str], left: list[str]
    ) -> Iterator[str]:
        """What came over, and which tensors did not."""
        amounts = ", ".join(f"{count:,} of {part}" for part, count in numbers.items())
        if line := model_line(Path(self.recipe.start or "")):
            yield f"{FIELD}: {line}"
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
                if pair[0] == pair[1]:
                    continue
                place, texts = f"{FIELD}: methods.{name}.{each.name}", [*map(repr, pair)]
                if max(map(len, texts)) > LONGEST:
                    yield f"{place} is not what it is in {self.recipe.start}"
                else:
                    yield f"{place} is {texts[0]} here and {texts[1]} in {self.recipe.start}"


def place_of_method(segments: Sequence[str]) -> int:
    """Where the name of the method stands that has added a tensor; 0 if none has."""
    # The outermost module of a method decides: its own modules may be called like methods.
    return next((n + 1 for n, segment in enumerate(segments) if segment in ADDED), 0)


def has_class_weights(head: nn.Module) -> bool:
    """True if a head's weights belong to its classes, one by one."""
    if not isinstance(head, TextClasses):
        return True
    return head.extension is not None and head.extension.has_class_weights
