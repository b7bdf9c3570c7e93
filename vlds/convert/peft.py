"""LoRA, (IA)^3 and prompts in the layout of Hugging Face's peft: adapter_config.json and
adapter_model.safetensors, which `PeftModel.from_pretrained` opens on the backbone.

A trained connector of an image-text model is in them too, whole (peft's `modules_to_save`). peft
itself is not needed for that. `transport` and `pruned` merge runs whose adapters were trained
apart: by bringing neurons into one order, or by taking small weights away first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vlds.artifact import LoadedRun
from vlds.convert.adapters import AdapterFolders
from vlds.convert.bases import language_base
from vlds.convert.combine import (
    Combined,
    Cost,
    Neurons,
    aligned,
    check_float32,
    factors_of,
    load_pot,
    open_alike,
    weighted,
)
from vlds.convert.output import first_names, say
from vlds.convert.verify import all_tasks, probe
from vlds.models.methods.adapter import AdapterModule
from vlds.models.methods.base import PEFT_MODEL, Library, Stored
from vlds.models.methods.host import LinearExtension, added_tensors, extended_linears
from vlds.models.methods.lora import LoRAModule
from vlds.models.methods.mixture import Mixture
from vlds.models.model import BACKBONE_PREFIX
from vlds.runtime.terminal import follow

FREE = {
    # What it is for, and who wrote it.
    "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision",
    "task_type",
    # Layers and sizes: names and shapes of the weights say the same.
    "exclude_modules", "feedforward_modules", "layers_pattern", "layers_to_transform",
    "num_attention_heads", "num_layers", "target_modules", "token_dim",
    # Training.
    "beta1", "beta2", "deltaT", "orth_reg_weight", "target_r", "tfinal", "tinit", "total_step",
    "eva_config", "init_ia3_weights", "lora_dropout", "prompt_tuning_init",
    "prompt_tuning_init_text", "tokenizer_kwargs", "tokenizer_name_or_path",
    # Numbers and names that have a default, and mean nothing while what they are of is off.
    "megatron_core", "qalora_group_size",
}  # fmt: skip
"""Settings that do not change what given weights compute."""
PLAIN: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    # pissa, olora, corda, lora_ga and loftq change the backbone's weights too: with the unchanged
    # ones, which are all that is known here, the adapter computes something else.
    "init_lora_weights": (True, "gaussian", "orthogonal", "eva"),
}
"""Settings that must be one of these, absent or off; all others must be absent or off."""
OFF: tuple[Any, ...] = (None, False, "", [], {})
CHECKED = ("peft_type", "r", "lora_alpha", "num_virtual_tokens", "num_transformer_submodules")
"""Settings that must be the recipe's."""


class PeftFolders(AdapterFolders):
    """How peft writes a run's method."""

    library: ClassVar[Library] = "peft"
    weight_files: ClassVar[tuple[str, ...]] = ("adapter_model.safetensors", "adapter_model.bin")

    def __init__(self, run: LoadedRun, base: str | None = None) -> None:
        """`base`: name of the backbone in adapter_config.json; default: its name on the hub.

        Errors: ValueError if peft cannot hold the run's method.
        """
        super().__init__(run)
        self.saved_modules = self.add_connector()
        """Paths of the connector's modules, if it trains."""
        if not run.recipe.model.own_backbone:  # else it is for what `convert hf` writes
            # The folder is for the model that the recipe names, so it must hold all that differs.
            trained_by = run.model.trained_by
            if lost := sorted(trained_by.keys() - self.stored.keys()):
                by = trained_by[lost[0]]
                raise ValueError(
                    f"methods.{by}: it trains {first_names(lost, 2)}, which peft's folder does not "
                    "hold; use `vlds convert merge`, or train without them (LoRA: train_biases "
                    "false)"
                )
        # The backbone has its hub name if all that the folder does not hold is from there.
        rest = {name for name in self.state if name.startswith(BACKBONE_PREFIX)} - set(self.stored)
        from_hub = rest <= run.model.sources.names
        self.base = base or (language_base(run.recipe.model) if from_hub else None)

    def add_connector(self) -> list[str]:
        """Store the connector too, if it trains; the paths of its modules.

        Errors: ValueError if it is not a module of the backbone, since peft stores whole modules.
        """
        trained = {n for n, part in self.run.model.trained_by.items() if part == "connector"}
        names = {n.removeprefix(BACKBONE_PREFIX) for n in trained if n.startswith(BACKBONE_PREFIX)}
        # The largest modules all of whose parameters train. Lists are not among them: peft puts a
        # module of its own around each, and nothing calls a list.
        modules: list[str] = []
        for path, module in self.backbone.named_modules():
            own = [f"{path}.{name}" for name, _ in module.named_parameters()]
            above = tuple(f"{each}." for each in modules)
            is_whole = own and path and names.issuperset(own)
            if is_whole and not isinstance(module, nn.ModuleList) and not path.startswith(above):
                modules.append(path)
        inside = tuple(f"{path}." for path in modules)
        if len(names) < len(trained) or not all(name.startswith(inside) for name in names):
            raise ValueError(
                "model: its connector trains too, and peft can hold modules of the backbone only, "
                "which not all of it is; use `vlds convert merge`, or train with train_connector "
                "(Causal: train_projector) false"
            )
        if modules:
            config = {**self.layout.config, "modules_to_save": modules}
            self.layout = replace(self.layout, config=config)
        for name in self.state:  # peft asks for a module's buffers too
            if name.removeprefix(BACKBONE_PREFIX).startswith(inside):
                key = PEFT_MODEL + name.removeprefix(BACKBONE_PREFIX)
                self.stored[name] = Stored((key,), stacked=False)
        return modules

    def config(self, adapter: str) -> dict[str, Any]:
        """peft's settings; what is left out has its defaults."""
        paths = {k: p for k, p in self.layout.config.items() if k.endswith("_modules")}
        modules = {key: short_names(named, self.backbone) for key, named in paths.items()}
        if any(modules[key] == named for key, named in paths.items()):
            modules = paths  # peft compares them with each other
        apart = self.backbone.config.is_encoder_decoder
        common = {"task_type": "SEQ_2_SEQ_LM" if apart else "CAUSAL_LM", "inference_mode": True}
        return {"base_model_name_or_path": self.base, **common, **self.layout.config, **modules}

    def check_config(self, config: Mapping[str, Any], file: Path) -> None:
        """Errors: ValueError if settings that were read differ from the recipe's."""
        ours = self.layout.config
        same = [*CHECKED, *sorted(ours.keys() - FREE - set(CHECKED))]
        for key in same:
            both_off = ours.get(key) in OFF and config.get(key) in OFF
            if key in ours and config.get(key) != ours[key] and not both_off:
                raise ValueError(
                    f"{file}: {key} is {config.get(key)!r}, and {ours[key]!r} by the recipe's "
                    "method; give it the same"
                )
        for key in sorted(config.keys() - FREE - set(same)):
            if config[key] not in (*OFF, *PLAIN.get(key, ())):
                raise ValueError(
                    f"{file}: {key} is {config[key]!r}, which vlds has no method for; train "
                    "without it"
                )

    def write_weights(self, tensors: dict[str, Tensor], file: Path) -> None:
        """As peft and transformers mark it."""
        save_file(tensors, file, metadata={"format": "pt"})


def short_names(paths: list[str], backbone: nn.Module) -> list[str]:
    """Last words of the paths where they mean these linear layers and no others, else the paths."""
    words = sorted({path.rpartition(".")[2] for path in paths})
    meant = {
        path
        for path, module in backbone.named_modules()
        if isinstance(module, nn.Linear) and path.rpartition(".")[2] in words
    }
    return words if meant == set(paths) else paths


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
        read[path].append(states.flatten(0, -2).double())

    handles = [m.register_forward_pre_hook(partial(keep, path)) for path, m in places_of(run)]
    for task in run.recipe.tasks:
        run.model.logits(probe(run, task, pictures, "--samples"))
    for handle in handles:
        handle.remove()
    return {path: torch.cat(states) for path, states in read.items()}


def pruned(
    runs: Sequence[Path], how: str, weights: Sequence[float] | None, density: float
) -> Combined:
    """The sum of what methods have added to runs, after peft's function `how` has taken small or
    random entries away; the mean of whatever else trains.

    Errors: ValueError if peft is missing, methods add nothing, or nothing or too much is left.
    """
    try:
        from peft.utils import merge_utils
    except ImportError:
        raise ValueError(f"--how {how} needs the package peft: pip install 'vlds[peft]'") from None
    function: Callable[[list[Tensor], Tensor, float], Tensor] = getattr(merge_utils, how)
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
