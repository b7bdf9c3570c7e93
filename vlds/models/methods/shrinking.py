"""MiMi (Marouf et al. 2024, https://arxiv.org/abs/2311.03873): adapters that begin wide and lose
their least important neurons, all layers competing. The paper finds small adapters trained so
better than those that begin small.

A neuron's importance is the mean absolute weight of what leads into it and out of it,

    s = (|row of W_down|_1 + |column of W_up|_1) / (inputs + outputs),

and each cycle removes a share of those that are left. A layer may lose all of its neurons; its
output bias stays. As in the paper, importance is compared over all layers.

Ours: neurons are taken out of the weights and of AdamW's moments, where the authors' code masks
them; exactly floor(N (1 - a)) stay, and of equal ones the first (the code keeps all that tie). The
run's steps are all cycles', where the authors train each cycle as long as a whole run.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from vlds.models.methods.adapter import Adapter
from vlds.models.methods.base import Library, Method
from vlds.models.methods.context import Revision, Trained
from vlds.models.methods.host import Host, extended_linears
from vlds.models.methods.lora import LoRA
from vlds.runtime.checks import Count, Limits

UNLIKE_WIDTHS = "layers have unlike widths; `vlds convert merge` pads adapters and folds LoRA"


@dataclass(frozen=True, kw_only=True)
class Shrinking(Method):
    """Adapters, or LoRA, that lose neurons, or ranks, while they train."""

    reasons: ClassVar[Mapping[Library, str]] = {"peft": UNLIKE_WIDTHS, "adapters": UNLIKE_WIDTHS}

    cure_of_sizes: ClassVar[str] = (
        "a run with Shrinking ends with fewer neurons than it begins with: `vlds convert merge` "
        "makes a plain Adapter of it, or folds LoRA, to begin with"
    )

    of: Method = field(default_factory=Adapter)
    """Adapter or LoRA as it begins, one for all tasks (`sharing: single`)."""
    cycles: Count = 3
    """Number of times that neurons are removed, evenly spread over the run's steps."""
    removed: Annotated[float, Limits(0, 1, above_least=True, below_most=True)] = 0.5
    """Share of the remaining neurons that each cycle removes."""
    restart: bool = True
    """Begin the learning rate's schedule, warm-up and all, again after each cycle, as the authors'
    code does; else one schedule spans the run."""
    relative: bool = False
    """Compare importance as a share of the largest in the layer."""

    def __post_init__(self) -> None:
        if not isinstance(self.of, (Adapter, LoRA)):
            raise ValueError(f"of: got {type(self.of).__name__}; choose Adapter or LoRA")
        if self.of.sharing != "single":
            raise ValueError(
                f"of.sharing: got {self.of.sharing}, and the tasks' adapters would lose unlike "
                "neurons; use single"
            )
        if self.of.part != "backbone" or self.of.learning_rate is not None:
            raise ValueError("of: set part and learning_rate at Shrinking itself")

    def check_steps(self, num_steps: int) -> None:
        if num_steps <= self.cycles:
            raise ValueError(
                f"cycles: got {self.cycles}, but the run has {num_steps} steps; give fewer cycles "
                "than steps"
            )

    def schedule_starts(self, num_steps: int) -> Sequence[int]:
        return revision_steps(self.cycles, num_steps) if self.restart else ()

    def attach(self, host: Host) -> list[nn.Parameter]:
        """Attach what shrinks.

        Errors: ValueError if the cycles would leave nothing.
        """
        trained = self.of.attach(host)
        # In the model's order, by which `survivors` decides between equals.
        modules = [
            linear.extensions[host.name] for linear in extended_linears(host.model, host.name)
        ]
        revision = Shrinkage(self, modules, trained)
        if revision.left(self.cycles) < 1:
            raise ValueError(
                f"cycles: {self.cycles} cycles that remove {self.removed} leave none of "
                f"{revision.num_neurons} neurons; give fewer, or a smaller share"
            )
        host.revisions.append(revision)
        return trained

    @torch.no_grad()
    def merge(self, name: str, model: nn.Module, tasks: Sequence[str]) -> Mapping[str, Method]:
        """LoRA is added to the weights. Adapters become plain ones as wide as the widest, with
        neurons of zeros."""
        if isinstance(self.of, LoRA):
            # A product of thinner matrices has the same size, so that it folds as it is.
            return replace(self.of, part=self.part).merge(name, model, tasks)
        assert isinstance(self.of, Adapter)
        modules: list[Any] = [linear.extensions[name] for linear in extended_linears(model, name)]
        # The widest layer sets the reduction; a layer without neurons counts as having one.
        reduction = min(module.width // max(1, num_neurons(module)) for module in modules)
        for module in modules:
            for leaf, dim in module.neurons.items():
                weight = getattr(module, leaf)
                # Neurons of zeros compute nothing: gelu(0) = relu(0) = silu(0) = 0.
                lacking = list(weight.shape)
                lacking[dim] = module.width // reduction - lacking[dim]
                replace_leaf(module, leaf, torch.cat([weight, weight.new_zeros(lacking)], dim))
        adapter = replace(
            self.of, reduction=reduction, part=self.part, learning_rate=self.learning_rate
        )
        return {name: adapter}


class Shrinkage(Revision):
    """Removes neurons of all layers of a method."""

    def __init__(
        self, config: Shrinking, modules: Sequence[Any], trained: Sequence[nn.Parameter]
    ) -> None:
        self.config, self.modules = config, modules
        # Parameters hash by identity.
        own = {parameter for module in modules for parameter in module.parameters()}
        self.beside = [parameter for parameter in trained if parameter not in own]
        """Weights that train and do not shrink, such as the backbone's biases."""
        self.num_neurons = sum(map(num_neurons, modules))
        """Neurons at the beginning of the run."""

    def steps(self, num_steps: int) -> Sequence[int]:
        return revision_steps(self.config.cycles, num_steps)

    def left(self, cycle: int) -> int:
        """Neurons that a cycle, from 1 on, leaves."""
        share = (1 - self.config.removed) ** cycle
        # The product may be just below a whole number that it should be.
        return math.floor(self.num_neurons * share + 1e-9)

    def revise(
        self, step: int, num_steps: int, state: Mapping[nn.Parameter, Trained]
    ) -> Mapping[nn.Parameter, Trained | None]:
        scores = []
        for module in self.modules:
            # One task's matrices, neurons first: the tasks' dimension, 0, is taken away.
            weights = [
                state[parameter]["fp32"][0].movedim(dim - 1, 0)
                for leaf, dim in module.neurons.items()
                if (parameter := getattr(module, leaf)) in state and not leaf.endswith("bias")
            ]
            scores.append(importance(weights, self.config.relative) if weights else [])
        cycle = self.steps(num_steps).index(step) + 1
        kept = survivors(scores, self.left(cycle))
        revised: dict[nn.Parameter, Trained | None] = dict(state)
        for module, places in zip(self.modules, kept, strict=True):
            index = torch.tensor(places, dtype=torch.int64)
            for leaf, dim in module.neurons.items():
                if (old := revised.pop(getattr(module, leaf), None)) is None:
                    continue  # the layer has lost its last neuron before
                # AdamW's moments are cut like the weight, so that what stays trains on unchanged.
                new = {key: t.index_select(dim, index) for key, t in old.items()}
                weight = replace_leaf(module, leaf, new["fp32"])
                if isinstance(weight, nn.Parameter):
                    revised[weight] = new
        return revised

    def fit(self, saved: Mapping[nn.Parameter, torch.Size]) -> Collection[nn.Parameter]:
        for module in self.modules:
            for leaf, dim in module.neurons.items():
                parameter = getattr(module, leaf)
                shape = list(getattr(parameter, "ds_shape", parameter.shape))
                # Weights without elements are buffers, which `saved` does not hold.
                width = saved[parameter][dim] if parameter in saved else 0
                if width < shape[dim]:
                    shape[dim] = width
                    replace_leaf(module, leaf, torch.zeros(shape))
        own = [parameter for module in self.modules for parameter in module.parameters()]
        return own + self.beside


def revision_steps(cycles: int, num_steps: int) -> list[int]:
    """The steps after which neurons go. The run's parts are even, one more than cycles: the last
    one trains what is left."""
    return [num_steps * cycle // (cycles + 1) for cycle in range(1, cycles + 1)]


def importance(weights: Sequence[Tensor], relative: bool) -> list[float]:
    """The mean absolute weight of each of n neurons, from matrices (n, inputs), (n, outputs).

    Sums are rounded once, so that equal neurons have equal importance, whatever their place.
    """
    rows = torch.cat(list(weights), dim=1).abs().double()
    scores = [math.fsum(row.tolist()) / len(row) for row in rows]
    largest = max(scores, default=0.0)
    return [score / largest for score in scores] if relative and largest > 0 else scores


def survivors(scores: Sequence[Sequence[float]], number: int) -> list[list[int]]:
    """Each layer's neurons that are among the `number` most important of all layers; of equally
    important ones, those of earlier layers and places stay."""
    # By -score, so that of equal scores the smaller layer and place come first.
    order = sorted(
        (
            (-score, layer, place)
            for layer, row in enumerate(scores)
            for place, score in enumerate(row)
        )
    )
    kept: list[list[int]] = [[] for _ in scores]
    for _, layer, place in order[:number]:
        kept[layer].append(place)
    return [sorted(places) for places in kept]


def num_neurons(module: Any) -> int:
    """Neurons of a layer's module."""
    leaf, dim = next(iter(module.neurons.items()))
    weight = getattr(module, leaf)
    # Where ZeRO has partitioned a weight, its own shape is (0,) and ds_shape the whole one.
    return int(getattr(weight, "ds_shape", weight.shape)[dim])


def replace_leaf(module: nn.Module, leaf: str, value: Tensor) -> Tensor:
    """Put another weight in the place of one, on its device and in its type. Without elements it is
    a buffer, because ZeRO's stage 3 fails on empty parameters."""
    old: Tensor = getattr(module, leaf)
    # A copy, because the optimizer's state keeps `value` itself.
    value = value.to(old.device, old.dtype, copy=True)
    delattr(module, leaf)
    if not value.numel():
        module.register_buffer(leaf, value)
        return value
    new = nn.Parameter(value)
    module.register_parameter(leaf, new)
    return new
