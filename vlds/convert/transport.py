"""Averages runs whose adapters were trained apart: MerA (He et al. 2023,
https://arxiv.org/abs/2308.15982) first brings the neurons of each run's adapters into the order of
the first run's, by optimal transport."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from vlds.artifact import LoadedRun
from vlds.convert.combine import Combined, open_alike, weighted
from vlds.convert.output import say
from vlds.convert.verify import probe
from vlds.models.methods.adapter import AdapterModule
from vlds.models.methods.host import LinearExtension, extended_linears
from vlds.models.methods.lora import LoRAModule
from vlds.models.methods.mixture import Mixture
from vlds.runtime.terminal import follow

Cost = Literal["weights_in", "weights_in_out", "activations"]
COSTS: tuple[Cost, ...] = get_args(Cost)
MOST_ITERATIONS, COLUMN_TOLERANCE = 10_000, 1e-3
"""Limits of entropic plans. Small shares converge as slowly as one over the iterations."""


class Neurons(NamedTuple):
    """The hidden neurons of one adapter, in float64."""

    down: Tensor
    """(r, d)."""
    bias: Tensor
    """(r,), 0 where there is none."""
    up: Tensor
    """(d, r)."""

    def features(self, cost: Cost, inputs: Tensor) -> Tensor:
        """(r, f) what neurons are compared by; `inputs`: (n, d) what the adapter reads."""
        if cost == "activations":
            return (inputs @ self.down.T + self.bias).T
        # A neuron is a row: (r, d + 1) with its bias, (r, 2 d + 1) with its column of the up half.
        weights = torch.cat([self.down, self.bias[:, None]], 1)
        return weights if cost == "weights_in" else torch.cat([weights, self.up.T], 1)


def distances(first: Tensor, other: Tensor) -> Tensor:
    """(r, f) features of two adapters -> (r, r) squared Euclidean distances."""
    return (first[:, None] - other).square().sum(-1)


def load_pot() -> ModuleType:
    """The library POT.

    Errors: ValueError if it is missing.
    """
    try:
        return import_module("ot")
    except ImportError:
        raise ValueError(
            "--how transport needs the package POT: pip install 'vlds[transport]'"
        ) from None


def transport_plan(cost: Tensor, regularisation: float | None = None) -> Tensor:
    """(r, r) cost -> (r, r) plan whose rows sum to 1: a permutation, or with `regularisation`, a
    share of the largest cost, a mixture of neurons.

    Errors: ValueError if the library POT is missing, or if the columns of a mixture do not come to
    sum to 1 as well.
    """
    ot, size = load_pot(), len(cost)
    if not size:
        return cost  # a layer that has lost all of its neurons
    masses = torch.full((size,), 1 / size, dtype=torch.float64)
    if regularisation is None:
        # A vertex of the polytope: rounding takes away what 1 / r leaves.
        exact: Tensor = size * ot.emd(masses, masses, cost)
        return exact.round()
    scaled = cost / cost.max().clamp(min=torch.finfo(cost.dtype).tiny)
    mixed: Tensor = size * ot.sinkhorn(
        masses, masses, scaled, regularisation, method="sinkhorn_log", numItermax=MOST_ITERATIONS,
        stopThr=1e-12, warn=False,
    )  # fmt: skip
    if not (mixed.sum(0) - 1).abs().max() <= COLUMN_TOLERANCE:
        raise ValueError(
            f"--entropic: got {regularisation}; the plan has not converged after "
            f"{MOST_ITERATIONS:,} iterations; give a larger share, or leave it out"
        )
    return mixed


def aligned(
    first: Neurons,
    other: Neurons,
    cost: Cost,
    inputs: Tensor,
    regularisation: float | None = None,
) -> Neurons:
    """The other adapter, with each neuron in the place of the first one's that is most like it.

    Then a mean of both makes sense. A neuron is a row of the down half, its bias, and a column of
    the up half. With uniform masses and the squared distances of neurons as cost, P is the plan,
    and the other adapter becomes

        down <- r P down,    bias <- r P bias,    up <- up (r P)^T,

    whose output is the same if P is exact: then r P is a permutation. There is no public code; the
    paper's costs are of weights or of activations. LoRA's A and B are such halves, without bias.
    """
    features = (neurons.features(cost, inputs) for neurons in (first, other))
    plan = transport_plan(distances(*features), regularisation)
    return Neurons(plan @ other.down, plan @ other.bias, other.up @ plan.T)


def transport(
    runs: Sequence[Path], cost: Cost | None, regularisation: float | None, pictures: Sequence[Path]
) -> Combined:
    """The mean of runs, once the neurons of all adapters stand in the order of the first run's.

    `cost`: default, weights_in_out. `pictures`: what activations are compared on; none: generated
    ones. Errors: ValueError if a method is neither Adapter nor LoRA, or the library POT is missing.
    """
    load_pot()
    cost = cost or "weights_in_out"
    if regularisation is not None:
        say("--entropic mixes neurons: not even a permuted copy of a run merges back exactly")
    loaded = open_alike(runs)
    first = loaded[0]
    if not first.recipe.methods:
        raise ValueError(
            f"--how transport: {runs[0]}: no methods, so there are no neurons to align"
        )
    for name, method in first.recipe.methods.items():
        kinds = {type(module) for _, module in modules_of(first, name)}
        # Experts have one order of neurons, since a mixture computes with their mean.
        of_experts = isinstance(method, Mixture)
        if of_experts or not kinds or not kinds <= {AdapterModule, LoRAModule}:
            raise ValueError(
                f"--how transport: {runs[0]}: methods.{name} is {type(method).__name__}, and only "
                "the halves of Adapter and LoRA have neurons to align; `vlds convert merge` may "
                "make it an Adapter"
            )
    # Keys are paths, which are the same in all runs of one model.
    places = list(places_of(first))
    inputs = inputs_of(first, pictures) if cost == "activations" else {}
    for other in follow(loaded[1:], "aligning runs", len(loaded) - 1):
        theirs = dict(places_of(other))
        for path, module in places:
            read = inputs.get(path, torch.empty(0))
            for one, another in zip(slices(module), slices(theirs[path]), strict=True):
                # `another` holds views, so the other run's model changes in place.
                target, moving = read_neurons(one), read_neurons(another)
                write_neurons(another, aligned(target, moving, cost, read, regularisation))
    return weighted(loaded, [1 / len(loaded)] * len(loaded))


def modules_of(run: LoadedRun, name: str) -> Iterator[tuple[str, LinearExtension]]:
    """Path -> module of a method behind a linear layer."""
    paths = {module: path for path, module in run.model.named_modules()}
    for linear in extended_linears(run.model, name):
        module = linear.extensions[name]
        assert isinstance(module, LinearExtension)
        yield paths[module], module


def places_of(run: LoadedRun) -> Iterator[tuple[str, Any]]:
    """Path -> module of a method behind a linear layer, of all methods."""
    for name in run.recipe.methods:
        yield from modules_of(run, name)


def slices(module: Any) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
    """(down, bias, up) views of each pair of halves of a module. Shared halves have one neuron
    order for all tasks, so that only modules with as many down as up slices can be aligned."""
    if isinstance(module, LoRAModule):
        down, bias, up = module.a, None, module.b
    else:
        down, bias, up = module.down_weight, module.down_bias, module.up_weight
    if len(down) != len(up):
        raise ValueError(
            "--how transport: tasks share one half of their adapters, whose neurons have one "
            "order; take runs whose `sharing` is single or multiple"
        )
    for number in range(len(down)):
        yield down.data[number], None if bias is None else bias.data[number], up.data[number]


def read_neurons(parts: tuple[Tensor, Tensor | None, Tensor]) -> Neurons:
    """The neurons of a pair of halves, in float64."""
    down, bias, up = parts
    bias = down.new_zeros(len(down)) if bias is None else bias
    return Neurons(down.double(), bias.double(), up.double())


def write_neurons(parts: tuple[Tensor, Tensor | None, Tensor], neurons: Neurons) -> None:
    """Put neurons into the module that the views `parts` are of."""
    for part, values in zip(parts, neurons, strict=True):
        if part is not None:
            part.copy_(values)


@torch.no_grad()
def inputs_of(run: LoadedRun, pictures: Sequence[Path]) -> dict[str, Tensor]:
    """Path of a module -> (n, d) what it reads in the run, on pictures and generated texts."""
    read: dict[str, list[Tensor]] = defaultdict(list)

    def keep(path: str, module: Any, inputs: tuple[Tensor, Tensor]) -> None:
        # LoRA reads the layer's input, an adapter its output, or the input of the whole
        # feed-forward layer beside which it stands.
        states = inputs[0] if isinstance(module, LoRAModule) else inputs[1]
        if getattr(module, "beside", None) is not None:
            states = module.beside.value
        # (b, t, d) -> (b t, d)
        read[path].append(states.flatten(0, -2).double())

    handles = [m.register_forward_pre_hook(partial(keep, path)) for path, m in places_of(run)]
    for task in run.recipe.tasks:
        run.model.logits(probe(run, task, pictures, "--samples"))
    for handle in handles:
        handle.remove()
    return {path: torch.cat(states) for path, states in read.items()}
