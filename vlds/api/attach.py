"""Methods of vlds in a model that the user built: `vlds.attach`."""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TypeAlias
from weakref import WeakSet

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vlds.artifact import check_weights
from vlds.evaluation.sources import path_of
from vlds.models.backbones.bart import Bart
from vlds.models.backbones.base import Backbone
from vlds.models.backbones.t5 import T5
from vlds.models.loading.gate import bounded
from vlds.models.loading.model_files import SourceError, open_tensors
from vlds.models.methods.base import Method
from vlds.models.methods.context import BatchContext
from vlds.models.methods.host import (
    ADDED,
    Host,
    ModelExtension,
    SidePath,
    added_tensors,
    is_own,
    is_plain,
    take_out,
)
from vlds.models.methods.passes import Passes, takes_prompts
from vlds.models.roles import find_roles
from vlds.recipe.build import build, check_part, to_tree
from vlds.recipe.paths import check_classes
from vlds.runtime.files import read_file, whole_folder
from vlds.runtime.json_files import parse_json
from vlds.schema import TargetModules

Chosen: TypeAlias = Method | str | Mapping[str, object]
"""A method, the name of its class, or {"class_path": ..., "init_args": ...} as in a recipe."""
WEIGHTS, METHODS = "weights.safetensors", "methods.json"
LARGEST_METHODS = 1 << 16
"""Bytes of METHODS: one of thousands of methods or roles takes minutes to check."""
NAME = "method"
"""What a method is called that is given without a name."""
FAMILIES: tuple[type[Backbone], ...] = (T5, Bart)


@dataclass(frozen=True, kw_only=True)
class Methods:
    """What stands under `methods` in a recipe, and in METHODS."""

    methods: dict[str, Method]


_tuned: WeakSet[nn.Module] = WeakSet()
"""Models that have methods: some methods add no module by which they could be told."""


NEEDS_VLDS = (
    "it needs a forward pass of vlds' own; train it with a recipe, or choose another method, such "
    "as LoRA, Adapter or PrefixTuning"
)


class LayerHost(Host):
    """A model whose own forward pass runs. `Passes` calls what methods put beside it."""

    def extend_model(self, extension: ModelExtension) -> None:
        # A side path gives the logits itself; layers that run before a pass would begin one.
        if isinstance(extension, SidePath) or extension.runs_layers:
            raise ValueError(NEEDS_VLDS)
        super().extend_model(extension)


class Attached:
    """Methods in a model. The model is the same object, of the same class: `forward` and
    `generate` work as before, and only the methods' weights train."""

    def __init__(self, model: nn.Module, methods: Mapping[str, Method], seed: int = 0) -> None:
        """Errors: ValueError as `attach`, which has tried it on a copy."""
        self.model, self.methods = model, dict(methods)
        self._trained_before = {n for n, p in model.named_parameters() if p.requires_grad}
        # Drawn apart from the program's own generator, and alike in each program.
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            context = put_in(model, methods)
        context.begin_step(seed, 0)
        self._passes = Passes(model, context)
        self._trained = [n for n, p in model.named_parameters() if p.requires_grad]
        _tuned.add(model)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The weights that train, for an optimizer."""
        return map(self.model.get_parameter, self._trained)

    def state_dict(self) -> dict[str, Tensor]:
        """All that the methods have added or train, by the names of the model's `state_dict`."""
        return own_state(self.model, self.methods, self._trained)

    def save(self, folder: str | PathLike[str]) -> Path:
        """Write the methods and their weights, but none of the model's frozen ones; the folder.
        `vlds.attach(model, folder)` reads it.

        Errors: ValueError if there is such a file or folder already; CannotWrite.
        """
        place = path_of("folder", folder)
        if place.exists():
            raise ValueError(f"{place} exists already; name a new folder, or remove it")
        tensors = {n: t.detach().cpu().contiguous().clone() for n, t in self.state_dict().items()}
        about = {"model": type(self.model).__name__, **to_tree(Methods(methods=self.methods))}
        with whole_folder(place) as partial:
            save_file(tensors, partial / WEIGHTS)
            (partial / METHODS).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        return place

    def load(self, folder: str | PathLike[str]) -> None:
        """Put weights that `save` wrote into the methods.

        Errors: ValueError if the folder is not one of `save`, or is of other methods or sizes.
        """
        self._fill(read_weights(path_of("folder", folder), self.model, self.state_dict()))

    def _fill(self, stored: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self.state_dict().items():
                tensor.copy_(stored[name])

    def detach(self) -> nn.Module:
        """Take the methods out of the model, and let train again what did before; the model.
        Weights of its own that they trained, such as biases, stay as they are."""
        self._passes.remove()
        for name in self.methods:
            take_out(self.model, name)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in self._trained_before)
        self.methods, self._trained = {}, []
        _tuned.discard(self.model)
        return self.model

    def __repr__(self) -> str:
        trained = sum(parameter.numel() for parameter in self.parameters())
        total = sum(parameter.numel() for parameter in self.model.parameters())
        names = ", ".join(type(method).__name__ for method in self.methods.values()) or "nothing"
        share = f"{trained:,} of {total:,} weights train ({100 * trained / max(1, total):.2f} %)"
        return f"{names} in {type(self.model).__name__}: {share}"


def attach(
    model: nn.Module, methods: Chosen | Mapping[str, Chosen] | PathLike[str], *, seed: int = 0
) -> Attached:
    """Put methods into a model that you built, such as one of Hugging Face's for text, pictures or
    both, and freeze all its other weights. Call it before the optimizer is made. To tune a part
    alone, freeze the model and give that part, such as `model.vision_model`.

    `methods`: a Method, the name of its class, or a dict of them by names that you choose, as in a
    recipe; or a folder that `Attached.save` wrote, whose weights are then loaded. `seed` draws the
    new weights.

    Methods that extend layers work in all models: LoRA, Adapter, Compacter, LowRankAdapter, IA3,
    BitFit, Peft, Full, and Mixture with consistency: 0; Hyperformer and PrefixTuning where layers
    have numbers and torch's attention; PromptTuning in T5 and causal language models, whose outputs
    are then those of the text alone. Errors: ValueError for others, for a model without the layers
    that a method extends, and for one that has methods already. The model is then as it was.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: got {type(model).__name__}; give a torch.nn.Module")
    if any(module in _tuned or hasattr(module, ADDED[0]) for module in model.modules()):
        raise ValueError(
            f"model: {type(model).__name__} has methods already; give all methods at once, or call "
            "detach() on what the first call returned"
        )
    folder = saved_folder(methods)
    chosen = read_methods(folder) if folder is not None else chosen_methods(methods)
    # On a copy without weights first: a refusal leaves the model as it was, and a stranger's
    # settings ask for no memory before their sizes are compared with the folder's weights.
    with torch.device("meta"), bounded():
        trial = without_weights(model)
        Passes(trial, put_in(trial, chosen))
    stored: dict[str, Tensor] = {}
    if folder is not None:
        trained = [name for name, p in trial.named_parameters() if p.requires_grad]
        stored = read_weights(folder, trial, own_state(trial, chosen, trained))
    attached = Attached(model, chosen, seed)
    if folder is not None:
        attached._fill(stored)
    return attached


def put_in(model: nn.Module, methods: Mapping[str, Method]) -> BatchContext:
    """Attach methods to a model and freeze the rest of it; what they read of a batch.

    Errors: ValueError that names the method.
    """
    context = BatchContext()
    targets, trained = targets_of(model), list[nn.Parameter]()
    for name, method in methods.items():
        try:
            if method.part != type(method).part:
                raise ValueError(
                    f"part: got {method.part}; give attach that part of your model, such as "
                    "model.vision_model"
                )
            if method.needs_whole_model:
                raise ValueError(NEEDS_VLDS)
            host = LayerHost(
                name, model, targets, ["all"], context, takes_prompts=takes_prompts(model),
                says_tokens=False,
            )  # fmt: skip
            trained += method.attach(host)
            if host.step_rules or host.batch_losses or host.revisions:
                raise ValueError(
                    "it adds to the loss or acts between steps, which only `vlds train` does"
                )
            if context.reads_examples:
                raise ValueError(
                    "it reads which pictures each row shows, which only a recipe's model tells"
                )
        except ValueError as error:
            raise ValueError(f"methods.{name}: {type(method).__name__}: {error}") from None
    model.requires_grad_(False)
    for path, module in model.named_modules():
        if not is_own(path):
            module.train(model.training)
    for parameter in trained:
        parameter.requires_grad_(True)
    return context


def own_state(
    model: nn.Module, methods: Iterable[str], trained: Collection[str]
) -> dict[str, Tensor]:
    """What methods have added to a model, and what trains in it, by the names of its state."""
    own = {tensor.name for name in methods for tensor in added_tensors(model, name)}.union(trained)
    return {name: tensor for name, tensor in model.state_dict().items() if name in own}


def without_weights(model: nn.Module) -> nn.Module:
    """A copy of a model with the shapes of its weights; packed ones are the model's own."""
    tensors = [*model.parameters(), *model.buffers()]
    floats = {id(t): nn.Parameter(t.to("meta")) for t in tensors if is_plain(t)}
    others = {id(t): t for t in tensors if not is_plain(t)}
    return copy.deepcopy(model, {**floats, **others})


def targets_of(model: nn.Module) -> TargetModules:
    """Where methods attach: as the model's family says, or else by the names of its layers."""
    for family in FAMILIES:
        if isinstance(model, family.model_class):
            return TargetModules(family.roles, family.linear_init_std)
    return find_roles(model)


def chosen_methods(given: object) -> dict[str, Method]:
    """Methods by name.

    Errors: ValueError as for a recipe.
    """
    one = isinstance(given, Method | str) or (isinstance(given, Mapping) and "class_path" in given)
    named = {NAME: given} if one else given
    if not isinstance(named, Mapping) or not named:
        raise ValueError(
            f"methods: got {given!r:.100}; give a method such as LoRA(rank=8), its name, a dict of "
            "them, or a folder as a Path"
        )
    ready = {name: method for name, method in named.items() if isinstance(method, Method)}
    # Through a recipe's parser: names of classes, keys and values have its messages.
    parsed = build(Methods, {"methods": {n: m for n, m in named.items() if n not in ready}}).methods
    check_names(named)
    return {name: ready.get(name) or parsed[name] for name in named}


def check_names(methods: Iterable[object]) -> None:
    """Errors: ValueError for a method's name that cannot be a module's."""
    for name in methods:
        if not isinstance(name, str) or not name.isidentifier() or hasattr(nn.ModuleDict(), name):
            raise ValueError(f"methods: {name!r:.100} cannot be a method's name; use a plain word")


def saved_folder(methods: object) -> Path | None:
    """The folder of `save` if that is what is given: a path, or a text with a slash or of a
    folder."""
    if isinstance(methods, str) and ("/" in methods or Path(methods).is_dir()):
        return path_of("methods", methods)
    return path_of("methods", methods) if isinstance(methods, PathLike) else None


def read_methods(folder: Path) -> dict[str, Method]:
    """The methods of a folder that `save` wrote, perhaps someone else's.

    Errors: ValueError that names the file.
    """
    file = folder / METHODS
    try:
        tree = parse_json(read_file(file, LARGEST_METHODS).decode())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).removeprefix(f"{file}: ")
        raise ValueError(
            f"{file}: {reason}; name a folder that `vlds.attach(...).save` wrote"
        ) from None
    if not isinstance(tree, dict) or "methods" not in tree:
        raise ValueError(f"{file}: names no methods; save them again")
    known = {"methods": tree["methods"]}
    check_classes(known, str(file))
    try:
        check_part(known, Methods, saved=True)
        methods = build(Methods, known).methods
        check_names(methods)
        return methods
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def read_weights(folder: Path, model: nn.Module, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a folder that `save` wrote. `own`: those that the methods have in the model,
    which may be on the meta device.

    Errors: ValueError that names the file, or a tensor that is not like the model's or holds other
    than finite floats.
    """
    with open_tensors("methods", folder / WEIGHTS) as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        wanted = {name: list(tensor.shape) for name, tensor in own.items()}
        for name in sorted(shapes.keys() | wanted.keys()):
            there, here = (
                (" x ".join(map(str, each[name])) or "one number") if name in each else "absent"
                for each in (shapes, wanted)
            )
            if there != here:
                raise SourceError(
                    f"{folder}: {name:.200} is {there} there and {here} in the model; attach the "
                    "methods that were saved, to a model of the same sizes: "
                    "vlds.attach(model, folder)"
                )
        stored = {name: file.get_tensor(name) for name in shapes}
    parameters = {name for name, _ in model.named_parameters()}
    for name, tensor in stored.items():
        check_weights(folder, name, tensor, name in parameters)
    return stored
