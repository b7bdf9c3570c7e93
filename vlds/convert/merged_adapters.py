"""Makes one run of several whose adapters were trained on their own: by transport of neurons, or
with small weights taken away first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlds.artifact import LoadedRun
from vlds.convert.combine import Combined, check_float32, factors_of, open_alike, weighted
from vlds.convert.output import say
from vlds.convert.transport import Cost, Neurons, aligned, load_pot
from vlds.convert.verify import all_tasks, probe
from vlds.methods.adapter import AdapterModule
from vlds.methods.extended import LinearExtension, added_tensors, extended_linears
from vlds.methods.lora import LoRAModule
from vlds.methods.mixture import Mixture
from vlds.runtime.progress import follow


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
    check_has_neurons(first, runs[0])
    places = list(places_of(first))
    inputs = inputs_of(first, pictures) if cost == "activations" else {}
    for other in follow(loaded[1:], "aligning runs", len(loaded) - 1):
        theirs = dict(places_of(other))
        for path, module in places:
            read = inputs.get(path, torch.empty(0))
            for one, another in zip(slices(module), slices(theirs[path]), strict=True):
                target, moving = read_neurons(one), read_neurons(another)
                write_neurons(another, aligned(target, moving, cost, read, regularisation))
    return weighted(loaded, [1 / len(loaded)] * len(loaded))


def check_has_neurons(run: LoadedRun, folder: Path) -> None:
    """Errors: ValueError if a method has no halves that can be permuted, or there is none."""
    if not run.recipe.methods:
        raise ValueError(f"--how transport: {folder}: no methods, so there are no neurons to align")
    for name, method in run.recipe.methods.items():
        kinds = {type(module) for _, module in modules_of(run, name)}
        # Experts have one order of neurons, since a mixture computes with their mean.
        of_experts = isinstance(method, Mixture)
        if of_experts or not kinds or not kinds <= {AdapterModule, LoRAModule}:
            raise ValueError(
                f"--how transport: {folder}: methods.{name} is {type(method).__name__}, and only "
                "the halves of Adapter and LoRA have neurons to align; `vlds convert merge` may "
                "make it an Adapter"
            )


def modules_of(run: LoadedRun, name: str) -> Iterator[tuple[str, LinearExtension]]:
    """Path -> module of a method behind a linear layer."""
    paths = {module: path for path, module in run.model.named_modules()}
    for linear in extended_linears(run.model, name):
        module = linear.extensions[name]
        assert isinstance(module, LinearExtension)
        yield paths[module], module


def places_of(run: LoadedRun) -> Iterator[tuple[str, Any]]:
    """Path -> module, of all methods."""
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
    """In float64."""
    down, bias, up = parts
    bias = down.new_zeros(len(down)) if bias is None else bias
    return Neurons(down.double(), bias.double(), up.double())


def write_neurons(parts: tuple[Tensor, Tensor | None, Tensor], neurons: Neurons) -> None:
    """Into the module that the views are of."""
    for part, values in zip(parts, neurons, strict=True):
        if part is not None:
            part.copy_(values)


@torch.no_grad()
def inputs_of(run: LoadedRun, pictures: Sequence[Path]) -> dict[str, Tensor]:
    """Path of a module -> (n, d) what it reads in the run, on pictures and generated texts."""
    read: dict[str, list[Tensor]] = {}
    handles = []
    for path, module in places_of(run):
        read[path] = []
        handles.append(module.register_forward_pre_hook(partial(keep, read[path])))
    for task in run.recipe.tasks:
        run.model.logits(probe(run, task, pictures, "--samples"))
    for handle in handles:
        handle.remove()
    return {path: torch.cat(states) for path, states in read.items()}


def keep(kept: list[Tensor], module: Any, states: tuple[Tensor, Tensor]) -> None:
    """Keep what a module reads: LoRA the layer's input, an adapter its output, or the input of the
    whole feed-forward layer beside which it stands."""
    read = states[0] if isinstance(module, LoRAModule) else states[1]
    if getattr(module, "beside", None) is not None:
        read = module.beside.value
    kept.append(read.flatten(0, -2).double())


def pruned(
    runs: Sequence[Path], how: str, weights: Sequence[float] | None, density: float
) -> Combined:
    """The sum of what methods have added to runs, after peft's function `how` has taken small or
    random entries away; the mean of whatever else trains.

    Errors: ValueError if peft is missing, methods add nothing, or nothing or too much is left.
    """
    function = prune_function(how)
    factors = factors_of(runs, weights)
    if sum(factors) == 0:
        raise ValueError(f"--weights: {factors} sum to 0, and a mean divides by that")
    loaded = open_alike(runs)
    states = [dict(run.model.unique_state()) for run in loaded]
    model, methods = loaded[0].model, loaded[0].recipe.methods
    names = {tensor.name for name in methods for tensor in added_tensors(model, name)}
    names &= model.moving_names()  # others are the same in all runs: what SimAdapter fuses
    if not names:
        kinds = ", ".join(type(method).__name__ for method in methods.values()) or "none"
        raise ValueError(
            f"--how {how}: {runs[0]}: its methods ({kinds}) add no weights to the model; take "
            "average or arithmetic"
        )
    merged = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # DARE draws what it takes away
        for name in sorted(names):
            tensors = [state[name].detach() for state in states]
            merged[name] = function(tensors, torch.tensor(factors), density)
            check_float32(merged[name], name, factors)
    if not any(tensor.any() for tensor in merged.values()):
        raise ValueError(f"--density: got {density}, which leaves no weight; give a larger share")
    weighted(loaded, [factor / sum(factors) for factor in factors])
    with torch.no_grad():
        for name, tensor in merged.items():
            states[0][name].copy_(tensor)
    return loaded[0], all_tasks(loaded[0])


def prune_function(how: str) -> Callable[[list[Tensor], Tensor, float], Tensor]:
    """peft's function of this name."""
    try:
        from peft.utils import merge_utils
    except ImportError:
        raise ValueError(f"--how {how} needs the package peft: pip install 'vlds[peft]'") from None
    function: Callable[[list[Tensor], Tensor, float], Tensor] = getattr(merge_utils, how)
    return function
