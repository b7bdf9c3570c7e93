"""Hyperformer (Karimi Mahabadi et al. 2021, https://arxiv.org/abs/2106.04489): adapters whose
weights a small network makes from embeddings of task and layer, as VL-Adapter has it
(https://arxiv.org/abs/2112.06825). For task t and layer i of a stack

    e = LN( W_2 relu( W_1 [t ; l_i] + b_1 ) + b_2 ),    W_down = G_down e + g_down, ...

All layers' weights of a stack come from one product for each kind of sub-layer, once a batch. The
paper's own systems also make a norm behind each bottleneck, which VL-Adapter leaves out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn

from vlds.methods.adapter import Adapter, materialise, merge_first
from vlds.methods.base import Case, Method, Toy, check_sharing
from vlds.methods.bottleneck import (
    Bottleneck,
    BottleneckModule,
    Half,
    Place,
    stack_and_layer,
    stand_beside,
)
from vlds.methods.extended import added_tensors
from vlds.methods.host import Host
from vlds.methods.hypernetwork import KINDS, HyperNetworks
from vlds.methods.layouts import LIBRARY_NAMES, Layout, Library, Stored
from vlds.methods.routing import TaskRouting
from vlds.runtime.checks import Count
from vlds.runtime.made_for_batch import MadeForBatch

ORIGINAL_KINDS = {
    "ffn_out": "feed_forward_",
    "attn_out": "self_attention_",
    "cross_attn_out": "cross_attention_",
    "all": "",
}
"""Generator -> what the original code's names of its layers begin with."""
MADE = {
    r"(down|up)_(\w+)\.(\w+)": r"\1_sampler_hyper_net.\2_generator.0.\3",
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
    layer_norm_after: bool = False
    """A norm behind each bottleneck, before the adapter's own residual, whose weight and bias are
    made too, as in the paper's own code."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sharing(self.part, "one set of weights per task")

    def attach(self, host: Host) -> list[nn.Parameter]:
        """Put a bottleneck at every place, and the networks that make their weights beside the
        model."""
        networks = self.networks(host)
        for place in self.places(host):
            module = HyperformerModule(self, place, networks.generated, host.context.routing)
            host.extend_linear(place.linear, module)
        if self.parallel:
            stand_beside(host)
        host.extend_model(networks)
        return list(networks.parameters())

    def networks(self, host: Host) -> HyperNetworks:
        """The networks of all stacks."""
        return HyperNetworks(self, self.places(host), len(host.tasks), host.targets.linear_init_std)

    @torch.no_grad()
    def merge(self, name: str, model: nn.Module, tasks: Sequence[str]) -> Mapping[str, Method]:
        """Plain adapters for each task, with the weights that the networks make.

        Errors: ValueError if they make norms, which plain adapters share.
        """
        if self.layer_norm_after:
            raise ValueError(
                "Hyperformer with layer_norm_after has a norm for each task, where Adapter has one "
                "for all; use `vlds convert hf`, which keeps it beside the backbone"
            )
        networks = model.get_submodule(f"extensions.{name}")
        networks()
        adapter = materialise(self, "multiple", name, model, tasks)
        extensions = model.get_submodule("extensions")
        assert isinstance(extensions, nn.ModuleDict)
        del extensions[name]
        return {name: adapter}

    def refusal(self, library: Library, model: Any) -> str | None:
        """What is made with norms becomes no plain adapter."""
        if self.layer_norm_after and library not in self.libraries:
            return f"{LIBRARY_NAMES[library]} has no {type(self).__name__} with layer_norm_after"
        return super().refusal(library, model)

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
        task, hidden, projected = 6, 5, 4
        method = cls(reduction=4, task_dim=task, hidden_dim=hidden, projected_dim=projected)
        # A generator has a factor for each number of e, and a constant.
        generator = (projected + 1) * (Toy.down + Toy.up)
        behind = (hidden + 1) * projected + 2 * projected
        stack = Toy.layers * task + (2 * task + 1) * hidden + behind
        stack_of_kinds = (Toy.layers + len(KINDS)) * task + (3 * task + 1) * hidden + behind
        each = Case(
            method,
            Toy.tasks * task + 2 * stack + (2 + 3) * generator,
            "task_embeddings.weight layer_embeddings.weight hidden.weight project.weight "
            "down_weight.weight up_weight.weight",
            "hidden.bias project.bias norm.weight norm.bias down_weight.bias up_weight.bias "
            "down_bias.weight down_bias.bias up_bias.weight up_bias.bias",
            merged=(Adapter,),
        )
        kinds_trained = Toy.tasks * task + 2 * stack_of_kinds + 2 * generator
        kinds = replace(
            each,
            method=replace(method, kind_embeddings=True),
            num_trained=kinds_trained,
            decayed=f"{each.decayed} kind_embeddings.weight",
        )
        norms = replace(
            kinds,
            method=replace(method, kind_embeddings=True, layer_norm_after=True),
            num_trained=kinds_trained + 2 * (projected + 1) * 2 * Toy.width,
            decayed=f"{kinds.decayed} norm_weight.weight",
            undecayed=f"{kinds.undecayed} norm_weight.bias norm_bias.weight norm_bias.bias",
            merged=(),
            refused={
                "merge": "has a norm for each task",
                **dict.fromkeys(("peft", "adapters"), "has no Hyperformer with layer_norm_after"),
            },
        )
        return {"": each, "kinds": kinds, "kinds, norms": norms}


def original_name(leaf: str) -> str:
    """`stacks.encoder_block.hidden.bias` -> its name in the original code."""
    _, stack, tensor = leaf.split(".", 2)
    stack = "encoder" if "encoder" in stack else "decoder"
    matches = ((re.fullmatch(pattern, tensor), name) for pattern, name in ORIGINAL_NAMES.items())
    name = next(match.expand(name) for match, name in matches if match)
    return f"{stack}.adapter_layers_hyper_net.{name}"


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
        halves: tuple[list[Half], list[Half]] = self.generated.value[self.key]
        return halves
