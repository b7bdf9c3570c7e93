"""Hyperformer (Karimi Mahabadi et al. 2021, https://arxiv.org/abs/2106.04489): adapters whose
weights a small network makes from embeddings of task and layer, as VL-Adapter has it
(https://arxiv.org/abs/2112.06825). For task t and layer i of a stack

    e = LN( W_2 relu( W_1 [t ; l_i] + b_1 ) + b_2 ),    W_down = G_down e + g_down, ...

All layers' weights of a stack come from one product for each kind of sub-layer, once a batch. The
paper's own systems also make norms, before or behind each bottleneck, which VL-Adapter leaves out.

Shapes: k tasks, n layers of a stack, d width of the model, m width of a bottleneck.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlds.models.methods.adapter import materialise, merge_first
from vlds.models.methods.base import (
    LIBRARY_NAMES,
    Layout,
    Library,
    Method,
    Stored,
    check_sharing,
)
from vlds.models.methods.bottleneck import (
    Bottleneck,
    BottleneckModule,
    BottleneckPlace,
    stack_and_layer,
    stand_beside,
)
from vlds.models.methods.context import TaskRouting, spread, stacked_linear
from vlds.models.methods.host import Host, ModelExtension, added_tensors, weight_options
from vlds.runtime.checks import Count, MadeForBatch
from vlds.schema import STACKED, UNDECAYED, OptimizerRules, Role

KINDS: tuple[Role, ...] = ("ffn_out", "attn_out", "cross_attn_out")
"""Kinds of sub-layer, in the order of the original's block-kind embeddings."""
GENERATOR_STD = 0.01
"""Initial standard deviation of the network if the backbone's family sets none."""
ORIGINAL_KINDS = {
    "ffn_out": "feed_forward_",
    "attn_out": "self_attention_",
    "cross_attn_out": "cross_attention_",
    "all": "",
}
"""Generator -> what the original code's names of its layers begin with."""
MADE = {
    r"(down|up)_(\w+)\.(\w+)": r"\1_sampler_hyper_net.\2_generator.0.\3",
    r"before_(\w+)\.(\w+)": r"pre_layernorm_hypernet.\1_generator.\2",
    r"norm_(\w+)\.(\w+)": r"post_layernorm_hypernet.\1_generator.\2",
}
"""Tensor of a generator -> its name in the original code."""
ORIGINAL_NAMES = {
    r"layer_embeddings\.weight": "layer_id_embeddings.weight",
    r"kind_embeddings\.weight": "adapters_block_type.weight",
    r"hidden\.(\w+)": r"task_hypernet.task_embeding_generator.0.\1",
    r"project\.(\w+)": r"task_hypernet.task_embeding_generator.2.\1",
    r"norm\.(\w+)": r"LayerNorm.\1",
} | {
    rf"generators\.{kind}\.{ours}": before + theirs
    for kind, before in ORIGINAL_KINDS.items()
    for ours, theirs in MADE.items()
}
"""Tensor of a stack's network -> its name in the original code, which spells "embeding" so."""


@dataclass(frozen=True, kw_only=True)
class Hyperformer(Bottleneck):
    """Bottlenecks whose weights are made from embeddings of task and layer."""

    libraries: ClassVar[frozenset[Library]] = frozenset({"reference"})
    reasons: ClassVar[Mapping[Library, str]] = merge_first("Hyperformer")

    task_dim: Count = 512
    """Width of the embeddings of tasks, layers and kinds of sub-layer."""
    hidden_dim: Count = 128
    """Width of the network's hidden layer."""
    projected_dim: Count = 8
    """Width of e, which the weights are made from."""
    kind_embeddings: bool = False
    """One generator for all kinds of sub-layer, told by an embedding which it is; default: a
    generator for each kind."""
    layer_norm_before: bool = False
    """A norm before each bottleneck, whose weight and bias are made too, as in the paper's own
    code."""
    layer_norm_after: bool = False
    """A norm behind each bottleneck, before the adapter's own residual, made likewise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sharing(self.part, "one set of weights per task")

    @property
    def made_norms(self) -> str:
        """The fields of the norms that are made."""
        norms = {"before": self.layer_norm_before, "after": self.layer_norm_after}
        return " and ".join(f"layer_norm_{place}" for place, is_made in norms.items() if is_made)

    def attach(self, host: Host) -> list[nn.Parameter]:
        """Put a bottleneck at every place, and the networks that make their weights beside the
        model."""
        places = self.places(host)
        # The modules behind layers hold no weights: they read what the networks make.
        networks = HyperNetworks(self, places, len(host.tasks), host.targets.linear_init_std)
        for place in places:
            module = HyperformerModule(self, place, networks.generated, host.context.routing)
            host.extend_linear(place.linear, module)
        if self.parallel:
            stand_beside(host)
        host.extend_model(networks)
        return list(networks.parameters())

    @torch.no_grad()
    def merge(self, name: str, model: nn.Module, tasks: Sequence[str]) -> Mapping[str, Method]:
        """Plain adapters for each task, with the weights that the networks make.

        Errors: ValueError if they make norms.
        """
        if norms := self.made_norms:
            raise ValueError(
                f"Hyperformer's networks make its {norms}, which no Adapter takes over; use "
                "`vlds convert hf`, which keeps it beside the backbone"
            )
        networks = model.get_submodule(f"extensions.{name}")
        networks()  # makes the halves that `materialise` reads
        adapter = materialise(self, "multiple", name, model, tasks)
        extensions = model.get_submodule("extensions")
        assert isinstance(extensions, nn.ModuleDict)
        del extensions[name]
        return {name: adapter}

    def refusal(self, library: Library, model: Any) -> str | None:
        # `reasons` advise to merge first, which plain adapters without these norms cannot follow.
        if self.made_norms and library not in self.libraries:
            return f"{LIBRARY_NAMES[library]} has no {type(self).__name__} with {self.made_norms}"
        return super().refusal(library, model)

    def layout(self, library: Library, name: str, model: Any) -> Layout:
        """The networks. The original code has the tasks' embeddings thrice, once in each stack."""
        tensors = {}
        for tensor in added_tensors(model, name):
            if tensor.leaf == "task_embeddings.weight":
                # The table has a row a task, and the original code a tensor a task.
                key = "task_to_embeddings.{task}"
                owners = ("shared_task_embed", "encoder.task_embed", "decoder.task_embed")
                tensors[tensor.name] = Stored(tuple(f"{owner}.{key}" for owner in owners))
            else:
                tensors[tensor.name] = Stored((original_name(tensor.leaf),), stacked=False)
        return Layout(tensors)


def original_name(leaf: str) -> str:
    """`stacks.encoder_block.hidden.bias` -> its name in the original code."""
    _, stack, tensor = leaf.split(".", 2)
    # Stacks are called by their paths, such as encoder_block and model_encoder_layers.
    stack = "encoder" if "encoder" in stack else "decoder"
    matches = ((re.fullmatch(pattern, tensor), name) for pattern, name in ORIGINAL_NAMES.items())
    name = next(match.expand(name) for match, name in matches if match)
    return f"{stack}.adapter_layers_hyper_net.{name}"


class HyperNetworks(ModelExtension):
    """One network a stack; the stacks share the embeddings of the tasks."""

    optimizer_rules: ClassVar[OptimizerRules] = {"task_embeddings.weight": STACKED}

    def __init__(
        self,
        config: Hyperformer,
        places: list[BottleneckPlace],
        num_tasks: int,
        init_std: float | None,
    ) -> None:
        super().__init__()
        self.generated = MadeForBatch()
        options = weight_options(places[0].linear)
        # Of standard deviation 1 on every backbone; the other tables follow its family's.
        self.task_embeddings = table(num_tasks, config.task_dim, 1.0, options)
        stacks: dict[str, list[BottleneckPlace]] = {}
        for place in places:
            stacks.setdefault(stack_and_layer(place.path)[0], []).append(place)
        self.stacks = nn.ModuleDict(
            {
                name: HyperNetwork(config, stack_places, init_std, options)
                for name, stack_places in stacks.items()
            }
        )

    def forward(self) -> None:
        """Make the weights of all tasks and layers."""
        tasks = rows_of(self.task_embeddings)
        generated = {}
        for name, network in self.stacks.items():
            assert isinstance(network, HyperNetwork)
            for place, own in network.by_layer(tasks).items():
                generated[name, *place] = own[: network.num_down], own[network.num_down :]
        self.generated.value = generated


class HyperNetwork(nn.Module):
    """Embeddings of the tasks -> weights of all bottlenecks of a stack."""

    # As in the original code, which decays all other norms.
    optimizer_rules: ClassVar[OptimizerRules] = {"norm.weight": UNDECAYED}

    def __init__(
        self,
        config: Hyperformer,
        places: list[BottleneckPlace],
        init_std: float | None,
        options: dict[str, Any],
    ) -> None:
        super().__init__()
        width = places[0].linear.out_features
        roles = {place.role for place in places}
        self.kinds = [kind for kind in KINDS if kind in roles]
        self.num_down = 4 if config.layer_norm_before else 2
        """Tensors of a down half, a norm before it included."""
        # By the highest number, so that a layer's number is its row.
        num_layers = 1 + max(stack_and_layer(place.path)[1] for place in places)
        table_std = 1.0 if init_std is None else init_std
        self.layer_embeddings = table(num_layers, config.task_dim, table_std, options)
        self.kind_embeddings = None
        # Without embeddings of kinds, each kind has a generator; with them, one makes all.
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

    def forward(self, tasks: Tensor) -> dict[Role, tuple[Tensor, ...]]:
        """(k, task_dim) -> for each kind: (k, n, m, d), (k, n, m), (k, n, d, m) and (k, n, d), the
        weights and biases of the down and up halves; behind those of a half twice (k, n, d) more,
        of its norm, if there is one."""
        if self.kind_embeddings is None:
            e = self.embedded(tasks, [])
            return {kind: self.generators[kind](e) for kind in self.kinds}
        weights = self.generators["all"](self.embedded(tasks, self.kinds))
        # (k, n, kinds, ...): kinds stand behind layers, as `embedded` pairs them last.
        return {
            kind: tuple(w[:, :, index] for w in weights) for index, kind in enumerate(self.kinds)
        }

    def by_layer(self, tasks: Tensor) -> dict[tuple[Role, int], tuple[Tensor, ...]]:
        """The weights of `forward` for each kind and layer, (k, ...)."""
        # Unbound once: slicing for each layer would cost a whole gradient each.
        return {
            (kind, layer): own
            for kind, weights in self(tasks).items()
            for layer, own in enumerate(zip(*(w.unbind(1) for w in weights), strict=True))
        }

    def embedded(self, tasks: Tensor, kinds: Sequence[Role]) -> Tensor:
        """(k, task_dim) -> e of each task and layer, (k, n, projected_dim), and of each of the
        kinds, if there are embeddings of kinds, (k, n, kinds, projected_dim)."""

        def pairs(left: Tensor, right: Tensor) -> Tensor:
            """(..., a) and (n, b) -> (..., n, a + b): each beside each."""
            # Expanding copies nothing; `cat` then writes each pair once.
            shape = (*left.shape[:-1], len(right))
            left = left[..., None, :].expand(*shape, left.shape[-1])
            return torch.cat([left, right.expand(*shape, right.shape[-1])], dim=-1)

        inputs = pairs(tasks, rows_of(self.layer_embeddings))
        if self.kind_embeddings is not None:
            # The table has a row for each of KINDS, also on backbones without cross-attention.
            # One by one: a GPU would wait for the copy of a list of indices.
            table = rows_of(self.kind_embeddings)
            inputs = pairs(inputs, torch.stack([table[KINDS.index(kind)] for kind in kinds]))
        e: Tensor = self.norm(self.project(F.relu(self.hidden(inputs))))
        return e


class Generator(nn.Module):
    """e -> weights and biases of both halves of a bottleneck, and of norms around them."""

    # What makes biases is treated as they would be.
    optimizer_rules: ClassVar[OptimizerRules] = {
        f"{bias}_bias.weight": UNDECAYED for bias in ("down", "before", "up", "norm")
    }

    def __init__(self, config: Hyperformer, width: int, options: dict[str, Any]) -> None:
        super().__init__()
        narrow = width // config.reduction
        self.shapes: dict[str, tuple[int, ...]] = {
            "down_weight": (narrow, width),
            "down_bias": (narrow,),
        }
        if config.layer_norm_before:
            self.shapes |= {"before_weight": (width,), "before_bias": (width,)}
        self.shapes |= {"up_weight": (width, narrow), "up_bias": (width,)}
        if config.layer_norm_after:
            self.shapes |= {"norm_weight": (width,), "norm_bias": (width,)}
        for name, shape in self.shapes.items():
            # One row of the layer for each entry of the weight; `forward` gives these their shape.
            layer = nn.Linear(config.projected_dim, math.prod(shape), **options)
            self.register_module(name, layer)

    def forward(self, e: Tensor) -> tuple[Tensor, ...]:
        """(..., projected_dim) -> (..., m, d), (..., m), (..., d, m), (..., d); behind those of a
        half with a norm twice (..., d) more."""
        return tuple(
            self.get_submodule(name)(e).unflatten(-1, shape) for name, shape in self.shapes.items()
        )


def table(rows: int, width: int, std: float, options: dict[str, Any]) -> nn.Embedding:
    """An embedding table with normal entries."""
    embedding = nn.Embedding(rows, width, **options)
    nn.init.normal_(embedding.weight, std=std)
    return embedding


def rows_of(embedding: nn.Embedding) -> Tensor:
    """The whole table, read through its module: ZeRO-3 holds it there, in the backward pass too."""
    whole: Tensor = embedding(
        torch.arange(embedding.num_embeddings, device=embedding.weight.device)
    )
    return whole


class HyperformerModule(BottleneckModule):
    """The bottlenecks behind one layer; their weights come with the batch."""

    def __init__(
        self,
        config: Hyperformer,
        place: BottleneckPlace,
        generated: MadeForBatch,
        routing: TaskRouting,
    ) -> None:
        super().__init__(config, place.linear, routing)
        self.generated = generated
        stack, layer = stack_and_layer(place.path)
        self.key = (stack, place.role, layer)

    def halves(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        halves: tuple[tuple[Tensor, ...], tuple[Tensor, ...]] = self.generated.value[self.key]
        return halves

    def layer(self, rows: Tensor, *weights: Tensor) -> Tensor:
        """A half without its norm."""
        weight, bias = weights
        return stacked_linear(rows, weight, bias)

    def through(self, states: Tensor) -> Tensor:
        down, up = self.halves()

        def bottleneck(rows: Tensor, *weights: Tensor) -> Tensor:
            first, second = weights[: len(down)], weights[len(down) :]
            narrow = self.activation(self.layer(normed(rows, first[2:]), *first[:2]))
            return normed(self.layer(narrow, *second[:2]), second[2:])

        return self.routing.apply_stacked(bottleneck, states, down, up)


def normed(rows: Tensor, norm: Sequence[Tensor]) -> Tensor:
    """Rows (k, ..., d) behind a norm of each task, weight and bias (k, d); as they are without."""
    if not norm:
        return rows
    weight, bias = (spread(each, rows) for each in norm)
    return torch.addcmul(bias, F.layer_norm(rows, rows.shape[-1:]), weight)
