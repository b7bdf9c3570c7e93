"""Hyperformer (Karimi Mahabadi et al. 2021, https://arxiv.org/abs/2106.04489): adapters whose
weights a small network makes from embeddings of task and layer, as VL-Adapter has it
(https://arxiv.org/abs/2112.06825). For task t and layer i of a stack

    e = LN( W_2 relu( W_1 [t ; l_i] + b_1 ) + b_2 ),    W_down = G_down e + g_down, ...

All layers' weights of a stack come from one product for each kind of sub-layer, once a batch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlds.methods.adapter import Adapter, linear_layers, materialise, merge_first
from vlds.methods.base import (
    ModelExtension,
    check_sharing,
    extend_linear,
    extend_model,
    weight_options,
)
from vlds.methods.bottleneck import DOWN_SIZE, UP_SIZE, Bottleneck, BottleneckModule, Half, Place
from vlds.methods.cases import LAYERS, NUM_TASKS, Case
from vlds.methods.extended import added_tensors
from vlds.methods.layouts import Layout, Library, Stored
from vlds.methods.routing import MadeForBatch, TaskRouting
from vlds.schema import STACKED, UNDECAYED, OptimizerRules, Role, TargetModules

KINDS: tuple[Role, ...] = ("ffn_out", "attn_out", "cross_attn_out")
"""Kinds of sub-layer, in the order of the original's block-kind embeddings."""
GENERATOR_STD = 0.01
"""Initial standard deviation of the network where the backbone's family has none of its own."""
ORIGINAL_KINDS = {
    "ffn_out": "feed_forward_",
    "attn_out": "self_attention_",
    "cross_attn_out": "cross_attention_",
    "all": "",
}
"""Generator -> what the original code's names of its layers begin with."""
ORIGINAL_NAMES = {
    r"layer_embeddings\.weight": "layer_id_embeddings.weight",
    r"kind_embeddings\.weight": "adapters_block_type.weight",
    r"hidden\.(\w+)": r"task_hypernet.task_embeding_generator.0.\1",
    r"project\.(\w+)": r"task_hypernet.task_embeding_generator.2.\1",
    r"norm\.(\w+)": r"LayerNorm.\1",
} | {
    rf"generators\.{ours}\.(down|up)_(\w+)\.(\w+)": (
        rf"{theirs}\1_sampler_hyper_net.\2_generator.0.\3"
    )
    for ours, theirs in ORIGINAL_KINDS.items()
}
"""Tensor of a stack's network -> its name in the original code, which spells "embeding" so."""


@dataclass(frozen=True, kw_only=True)
class Hyperformer(Bottleneck):
    """Bottlenecks whose weights are made from embeddings of task and layer."""

    libraries: ClassVar[frozenset[Library]] = frozenset({"reference"})
    reasons: ClassVar[Mapping[Library, str]] = merge_first("Hyperformer")

    task_dim: int = 512
    """Width of the embeddings of tasks, layers and kinds of sub-layer."""
    hidden_dim: int = 128
    """Width of the network's hidden layer."""
    projected_dim: int = 8
    """Width of e, which the weights are made from."""
    kind_embeddings: bool = False
    """One generator for all kinds of sub-layer, told by an embedding which it is; default: a
    generator for each kind."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sharing(self.part, "one set of weights per task")
        for name in ("task_dim", "hidden_dim", "projected_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}; give at least 1")

    def attach(
        self,
        name: str,
        model: nn.Module,
        targets: TargetModules,
        tasks: Sequence[str],
        routing: TaskRouting,
    ) -> list[nn.Parameter]:
        """Put a bottleneck at every place, and the networks that make their weights beside the
        model."""
        places = list(self.places(model, targets))
        networks = HyperNetworks(self, places, len(tasks), targets.linear_init_std)
        for place in places:
            module = HyperformerModule(self, place, networks.generated, routing)
            extend_linear(model, place.path, name, module)
        extend_model(model, name, networks)
        return list(networks.parameters())

    @torch.no_grad()
    def merge(self, name: str, model: nn.Module, tasks: Sequence[str]) -> Adapter:
        """Plain adapters for each task, with the weights that the networks make."""
        networks = model.get_submodule(f"extensions.{name}")
        networks()
        adapter = materialise(self, "multiple", name, model, tasks)
        extensions = model.get_submodule("extensions")
        assert isinstance(extensions, nn.ModuleDict)
        del extensions[name]
        return adapter

    def layout(self, library: Library, name: str, model: Any) -> Layout:
        """The networks; each stack of the original code names the tasks' embeddings too."""
        tensors = {}
        for tensor in added_tensors(model, name):
            if tensor.leaf == "task_embeddings.weight":
                key = "task_to_embeddings.{task}"
                owners = ("shared_task_embed", "encoder.task_embed", "decoder.task_embed")
                tensors[tensor.name] = Stored(tuple(f"{owner}.{key}" for owner in owners))
            else:
                tensors[tensor.name] = Stored((original_name(tensor.leaf),), stacked=False)
        return Layout(tensors)

    @classmethod
    def cases(cls) -> Mapping[str, Case]:
        """A generator for each kind, and one for all."""
        task, hidden, projected = 6, 5, 4
        method = cls(reduction=4, task_dim=task, hidden_dim=hidden, projected_dim=projected)
        # A generator has a factor for each number of e, and a constant.
        generator = (projected + 1) * (DOWN_SIZE + UP_SIZE)
        behind = (hidden + 1) * projected + 2 * projected
        stack = LAYERS * task + (2 * task + 1) * hidden + behind
        stack_of_kinds = (LAYERS + len(KINDS)) * task + (3 * task + 1) * hidden + behind
        decayed = (
            "task_embeddings.weight layer_embeddings.weight hidden.weight project.weight "
            "down_weight.weight up_weight.weight"
        )
        undecayed = (
            "hidden.bias project.bias norm.weight norm.bias down_weight.bias up_weight.bias "
            "down_bias.weight down_bias.bias up_bias.weight up_bias.bias"
        )
        return {
            "": Case(
                method,
                task * NUM_TASKS + 2 * stack + (2 + 3) * generator,
                decayed,
                undecayed,
                merged=Adapter,
            ),
            "kinds": Case(
                replace(method, kind_embeddings=True),
                task * NUM_TASKS + 2 * stack_of_kinds + 2 * generator,
                f"{decayed} kind_embeddings.weight",
                undecayed,
                merged=Adapter,
            ),
        }


def original_name(leaf: str) -> str:
    """`stacks.encoder_block.hidden.bias` -> its name in the original code."""
    _, stack, tensor = leaf.split(".", 2)
    stack = "encoder" if "encoder" in stack else "decoder"
    matches = ((re.fullmatch(pattern, tensor), name) for pattern, name in ORIGINAL_NAMES.items())
    name = next(match.expand(name) for match, name in matches if match)
    return f"{stack}.adapter_layers_hyper_net.{name}"


class HyperNetworks(ModelExtension):
    """One network a stack; the stacks share the embeddings of the tasks."""

    optimizer_rules: ClassVar[OptimizerRules] = {"task_embeddings.weight": STACKED}

    def __init__(
        self, config: Hyperformer, places: list[Place], num_tasks: int, init_std: float | None
    ) -> None:
        super().__init__()
        self.generated = MadeForBatch()
        self.generated.value = {}
        options = weight_options(places[0].linear)
        self.task_embeddings = table(num_tasks, config.task_dim, 1.0, options)
        stacks: dict[str, list[Place]] = {}
        for place in places:
            stacks.setdefault(stack_and_layer(place.path)[0], []).append(place)
        self.stacks = nn.ModuleDict(
            {name: HyperNetwork(config, found, init_std, options) for name, found in stacks.items()}
        )

    def forward(self) -> None:
        """Make the weights of all tasks and layers."""
        tasks = rows_of(self.task_embeddings)
        for name, network in self.stacks.items():
            assert isinstance(network, HyperNetwork)
            weights = network(tasks)
            for number, kind in enumerate(network.kinds):
                # Taken apart once: a slice for each layer would cost a whole gradient each.
                down_weight, down_bias, up_weight, up_bias = weights[4 * number : 4 * number + 4]
                down = linear_layers(down_weight.flatten(0, 1), down_bias.flatten(0, 1))
                up = linear_layers(up_weight.flatten(0, 1), up_bias.flatten(0, 1))
                num_layers = down_weight.shape[1]
                for layer in range(num_layers):
                    of_layer = slice(layer, None, num_layers)  # one for each task
                    self.generated.value[name, kind, layer] = down[of_layer], up[of_layer]


class HyperNetwork(nn.Module):
    """Embeddings of the tasks -> weights of all bottlenecks of a stack."""

    # In the original code too, where no other norm is left without decay.
    optimizer_rules: ClassVar[OptimizerRules] = {"norm.weight": UNDECAYED}

    def __init__(
        self,
        config: Hyperformer,
        places: list[Place],
        init_std: float | None,
        options: dict[str, Any],
    ) -> None:
        super().__init__()
        width = places[0].linear.out_features
        roles = {place.role for place in places}
        self.kinds = [kind for kind in KINDS if kind in roles]
        num_layers = 1 + max(stack_and_layer(place.path)[1] for place in places)
        table_std = 1.0 if init_std is None else init_std
        self.layer_embeddings = table(num_layers, config.task_dim, table_std, options)
        self.kind_embeddings = None
        inputs, generators = 2 * config.task_dim, list(self.kinds)
        if config.kind_embeddings:
            self.kind_embeddings = table(len(KINDS), config.task_dim, table_std, options)
            inputs, generators = 3 * config.task_dim, ["all"]  # type: ignore[list-item]
        self.hidden = nn.Linear(inputs, config.hidden_dim, **options)
        self.project = nn.Linear(config.hidden_dim, config.projected_dim, **options)
        self.norm = nn.LayerNorm(config.projected_dim, eps=1e-6, **options)
        self.generators = nn.ModuleDict(
            {kind: Generator(config, width, options) for kind in generators}
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=GENERATOR_STD if init_std is None else init_std)
                nn.init.zeros_(module.bias)

    def forward(self, tasks: Tensor) -> tuple[Tensor, ...]:
        """(k, task_dim) -> for each kind, with n layers: (k, n, m, d), (k, n, m), (k, n, d, m) and
        (k, n, d), the weights and biases of the down and up halves."""
        pairs = self.pairs(tasks, rows_of(self.layer_embeddings))
        if self.kind_embeddings is None:
            e = self.embed(pairs)
            return tuple(w for kind in self.kinds for w in self.generators[kind](e))
        numbers = [KINDS.index(kind) for kind in self.kinds]
        triples = self.pairs(pairs, rows_of(self.kind_embeddings)[numbers])
        weights = self.generators["all"](self.embed(triples))
        return tuple(w[:, :, number] for number in range(len(numbers)) for w in weights)

    def pairs(self, left: Tensor, right: Tensor) -> Tensor:
        """(..., a) and (n, b) -> (..., n, a + b): each beside each."""
        shape = (*left.shape[:-1], len(right))
        left = left[..., None, :].expand(*shape, left.shape[-1])
        return torch.cat([left, right.expand(*shape, right.shape[-1])], dim=-1)

    def embed(self, inputs: Tensor) -> Tensor:
        """(..., embeddings) -> (..., projected_dim)."""
        e: Tensor = self.norm(self.project(F.relu(self.hidden(inputs))))
        return e


class Generator(nn.Module):
    """e -> weights and biases of both halves of a bottleneck."""

    # What makes biases is treated as they would be.
    optimizer_rules: ClassVar[OptimizerRules] = {
        "down_bias.weight": UNDECAYED,
        "up_bias.weight": UNDECAYED,
    }

    def __init__(self, config: Hyperformer, width: int, options: dict[str, Any]) -> None:
        super().__init__()
        narrow = width // config.reduction
        self.shapes = ((narrow, width), (narrow,), (width, narrow), (width,))
        inputs = config.projected_dim
        self.down_weight = nn.Linear(inputs, narrow * width, **options)
        self.down_bias = nn.Linear(inputs, narrow, **options)
        self.up_weight = nn.Linear(inputs, width * narrow, **options)
        self.up_bias = nn.Linear(inputs, width, **options)

    def forward(self, e: Tensor) -> tuple[Tensor, ...]:
        """(..., projected_dim) -> (..., m, d), (..., m), (..., d, m), (..., d)."""
        layers = (self.down_weight, self.down_bias, self.up_weight, self.up_bias)
        return tuple(
            layer(e).unflatten(-1, shape) for layer, shape in zip(layers, self.shapes, strict=True)
        )


class HyperformerModule(BottleneckModule):
    """The bottlenecks behind one layer; their weights come with the batch."""

    def __init__(
        self, config: Hyperformer, place: Place, generated: MadeForBatch, routing: TaskRouting
    ) -> None:
        super().__init__(config, place.linear, routing)
        self.generated = generated
        stack, layer = stack_and_layer(place.path)
        self.key = (stack, place.role, layer)

    def halves(self) -> tuple[list[Half], list[Half]]:
        """Those made for this layer."""
        made: tuple[list[Half], list[Half]] = self.generated.value[self.key]
        return made


def table(rows: int, width: int, std: float, options: dict[str, Any]) -> nn.Embedding:
    """An embedding table with normal entries."""
    made = nn.Embedding(rows, width, **options)
    nn.init.normal_(made.weight, std=std)
    return made


def rows_of(embedding: nn.Embedding) -> Tensor:
    """The whole table, read through its module: ZeRO-3 holds it there, in the backward pass too."""
    whole: Tensor = embedding(
        torch.arange(embedding.num_embeddings, device=embedding.weight.device)
    )
    return whole


def stack_and_layer(path: str) -> tuple[str, int]:
    """`model.encoder.layers.3.fc2` -> model_encoder_layers, 3."""
    found = re.match(r"(.+?)\.(\d+)\.", path)
    if found is None:
        raise ValueError(f"{path} is in no numbered layer; Hyperformer needs a stack of layers")
    return found[1].replace(".", "_"), int(found[2])
