"""HyperPELT (Zhang et al. 2023, https://arxiv.org/abs/2203.03878): networks that make prefixes for
every attention and adapters beside every feed-forward layer. One set is made from embeddings of
task, layer and block, as Hyperformer's; a second one, from an embedding of the example's pictures,
of layer and of block, stands beside the first.

There is no public code. As the paper: what is made from what, and where it stands. Ours: the
picture's embedding is the mean of its visual tokens through a linear layer; the sizes; the two sets
have networks of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vlds.methods.adapter import Adapter
from vlds.methods.base import Case, Method
from vlds.methods.bottleneck import Place
from vlds.methods.context import BatchContext
from vlds.methods.host import CROSS_ATTENTION, Host, weight_options
from vlds.methods.hyperformer import Hyperformer, HyperformerModule
from vlds.methods.hypernetwork import (
    GENERATOR_STD,
    HyperNetwork,
    HyperNetworks,
    rows_of,
    stack_and_layer,
)
from vlds.methods.layouts import Library
from vlds.methods.routing import MadeForBatch
from vlds.schema import Role

Key = tuple[str, Role, int]
"""Stack, kind of sub-layer and layer."""
PREFIXED: dict[Role, Role] = {"attn_k": "attn_out", "cross_attn_k": "cross_attn_out"}
"""Keys' projection -> kind of its sub-layer."""


@dataclass(frozen=True, kw_only=True)
class HyperPELT(Hyperformer):
    """Prefixes and adapters that are made from task, layer, block and pictures."""

    libraries: ClassVar[frozenset[Library]] = frozenset()
    reasons: ClassVar[Mapping[Library, str]] = {}

    attention: bool = False
    cross_attention: bool = False
    kind_embeddings: bool = True
    parallel: bool = True
    """Adapters beside feed-forward layers; false: behind them, as Hyperformer's."""
    prefix_length: int = 20
    """Keys and values before those of every attention, in each set; 0: none."""
    visual: bool = True
    """A second set that is made from the example's pictures."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prefix_length < 0:
            raise ValueError(f"prefix_length: got {self.prefix_length}; give 0 or more")
        if self.parallel and (self.attention or self.cross_attention):
            raise ValueError(
                "parallel: got true, and adapters stand beside feed-forward layers alone; leave "
                "attention and cross_attention at false, or set parallel: false"
            )

    def attach(self, host: Host) -> list[nn.Parameter]:
        """Put adapters and prefixes into the model, and their networks beside it.

        Errors: ValueError if the model has no visual tokens, or takes no prefixes.
        """
        if self.visual and not host.takes_prompts:
            raise ValueError(
                f"visual: got true, and {type(host.model).__name__} reads pictures itself, so that "
                "no visual tokens come before it; set visual: false"
            )
        places = self.places(host)
        networks = PELTNetworks(self, places, host)
        notes = self.notes(host)
        for place in places:
            beside = notes.get(stack_and_layer(place.path))
            host.extend_linear(place.linear, PELTModule(self, place, networks, beside, host))
        for role in PREFIXED if self.prefix_length else ():
            for path in host.linears(role, optional=CROSS_ATTENTION):
                stack, layer = stack_and_layer(path)
                prefix = HyperPrefix(networks, (stack, PREFIXED[role], layer), host.context)
                host.extend_attention(path, prefix)
        host.extend_model(networks)
        host.context.reads_examples |= self.visual
        return list(networks.parameters())

    def notes(self, host: Host) -> dict[tuple[str, int], MadeForBatch]:
        """Stack and layer -> the input of its feed-forward layer, for adapters beside it."""
        if not self.parallel:
            return {}
        noted = zip(host.modules_of("ffn_in"), host.note_inputs("ffn_in"), strict=True)
        return {stack_and_layer(path): note for path, note in noted}

    @torch.no_grad()
    def merge(self, name: str, model: nn.Module, tasks: Sequence[str]) -> Adapter:
        """Plain adapters, if there is nothing else.

        Errors: ValueError if weights depend on the picture, stand beside layers, or are prefixes.
        """
        if self.visual or self.prefix_length or self.parallel:
            Method.merge(self, name, model, tasks)
        return super().merge(name, model, tasks)

    @classmethod
    def cases(cls) -> Mapping[str, Case]:
        """All; without pictures; what Hyperformer is."""
        small: dict[str, Any] = {
            "reduction": 4, "task_dim": 6, "hidden_dim": 5, "projected_dim": 4,
        }  # fmt: skip
        refused = {"merge": "HyperPELT computes what no plain layer computes"}
        plain: dict[str, Any] = {"prefix_length": 0, "visual": False, "parallel": False}
        behind = cls(**small, **plain, attention=True, cross_attention=True)
        return {
            "": Case(cls(**small, prefix_length=3), refused=refused),
            "tasks alone": Case(cls(**small, prefix_length=3, visual=False), refused=refused),
            "adapters alone": Case(behind, merged=Adapter),
        }


class PELTNetworks(HyperNetworks):
    """The networks of both sets."""

    def __init__(self, config: HyperPELT, places: list[Place], host: Host) -> None:
        std = host.targets.linear_init_std
        super().__init__(config, places, len(host.tasks), std)
        self.gives_prompts = config.prefix_length > 0
        self.key_width = 0
        self.context, options = host.context, weight_options(places[0].linear)
        self.of_pictures, self.prefixes, self.picture_prefixes = (MadeForBatch() for _ in range(3))
        kinds: dict[str, list[Role]] = {}
        for role, kind in PREFIXED.items() if config.prefix_length else ():
            linears = host.linears(role, optional=CROSS_ATTENTION)
            for stack in dict.fromkeys(stack_and_layer(path)[0] for path in linears):
                kinds.setdefault(stack, []).append(kind)
            self.key_width = next((x.out_features for x in linears.values()), self.key_width)

        def heads() -> nn.ModuleDict:
            return nn.ModuleDict(
                {
                    stack: PrefixHead(config, own, self.key_width, options, std)
                    for stack, own in kinds.items()
                }
            )

        self.heads = heads()
        self.visual_stacks, self.visual_heads = nn.ModuleDict(), nn.ModuleDict()
        self.look: nn.Linear | None = None
        if config.visual:
            twin = HyperNetworks(config, places, 1, std)
            self.visual_stacks, self.visual_heads = twin.stacks, heads()
            self.look = nn.Linear(places[0].linear.out_features, config.task_dim, **options)

    def forward(self) -> None:
        """Make the weights of all tasks, and of the pictures of all examples."""
        super().forward()
        tasks = rows_of(self.task_embeddings)
        self.prefixes.value = prefixes_of(self.stacks, self.heads, tasks)
        if self.look is None:
            return
        visual = self.context.visual
        assert visual is not None, "the model says what its visual tokens are"
        pictures = self.look(visual.mean())
        self.picture_prefixes.value = prefixes_of(self.visual_stacks, self.visual_heads, pictures)
        made: dict[Key, list[Tensor]] = {}
        for stack, network in self.visual_stacks.items():
            for kind, weights in network(pictures).items():
                by_layer = zip(*(weight.unbind(1) for weight in weights), strict=True)
                made |= {(stack, kind, n): list(own) for n, own in enumerate(by_layer)}
        self.of_pictures.value = made


class PrefixHead(nn.Module):
    """e -> keys and values before those of every attention of a stack."""

    def __init__(
        self,
        config: HyperPELT,
        kinds: Sequence[Role],
        width: int,
        options: dict[str, Any],
        std: float | None,
    ) -> None:
        super().__init__()
        self.kinds = list(kinds)
        self.shape = (2, config.prefix_length, width)
        num = 1 if config.kind_embeddings else len(kinds)
        self.layers = nn.ModuleList(
            nn.Linear(config.projected_dim, 2 * config.prefix_length * width, **options)
            for _ in range(num)
        )
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            nn.init.normal_(layer.weight, std=GENERATOR_STD if std is None else std)
            nn.init.zeros_(layer.bias)

    def forward(self, network: HyperNetwork, tasks: Tensor) -> dict[Role, Tensor]:
        """(k, task_dim) -> for each kind, with n layers, (k, n, 2, p, width)."""
        e = network.embedded(tasks, self.kinds)
        if network.kind_embeddings is not None:
            made = self.layers[0](e).unflatten(-1, self.shape)
            return {kind: made[:, :, index] for index, kind in enumerate(self.kinds)}
        return {
            kind: layer(e).unflatten(-1, self.shape)
            for kind, layer in zip(self.kinds, self.layers, strict=True)
        }


def prefixes_of(networks: nn.ModuleDict, heads: nn.ModuleDict, tasks: Tensor) -> dict[Key, Any]:
    """Tasks or pictures (k, task_dim) -> keys and values (k, p, width) of every attention."""
    return {
        (stack, kind, layer): pair.unbind(1)
        for stack, head in heads.items()
        for kind, made in head(networks[stack], tasks).items()
        for layer, pair in enumerate(made.unbind(1))
    }


class PELTModule(HyperformerModule):
    """The adapters of one feed-forward layer."""

    def __init__(
        self,
        config: HyperPELT,
        place: Place,
        networks: PELTNetworks,
        beside: MadeForBatch | None,
        host: Host,
    ) -> None:
        """`beside`: the input of the feed-forward layer, for adapters beside it."""
        super().__init__(config, place, networks.generated, host.context.routing)
        self.beside, self.context = beside, host.context
        self.of_pictures = networks.of_pictures if config.visual else None

    def forward(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """(b, l, d) -> (b, l, d)."""
        states = outputs if self.beside is None else self.beside.take()
        changed = outputs + self.through(states)
        return changed if self.of_pictures is None else changed + self.seen(states)

    def seen(self, states: Tensor) -> Tensor:
        """(b, l, d) -> (b, l, d) through the bottlenecks that the rows' pictures make."""
        assert self.of_pictures is not None
        rows = self.context.example_of_rows(len(states))
        down, down_bias, up, up_bias = (w[rows] for w in self.of_pictures.value[self.key])
        narrow = self.activation(torch.baddbmm(down_bias[:, None], states, down.mT))
        return torch.baddbmm(up_bias[:, None], narrow, up.mT)


class HyperPrefix(nn.Module):
    """The prefixes of one attention."""

    def __init__(self, networks: PELTNetworks, key: Key, context: BatchContext) -> None:
        super().__init__()
        self.of_tasks, self.context, self.key = networks.prefixes, context, key
        self.of_pictures = networks.picture_prefixes if networks.look is not None else None

    def forward(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """(b, heads, s, d) keys and values -> (b, heads, p + s, d)."""
        routing, num_heads = self.context.routing, keys.shape[1]
        beams = routing.num_rows // len(keys)  # which share the keys of an example
        sets = [[routing.of_rows(piece)[::beams] for piece in self.of_tasks.value[self.key]]]
        if self.of_pictures is not None:
            rows = self.context.example_of_rows(routing.num_rows)[::beams]
            sets.insert(0, [piece[rows] for piece in self.of_pictures.value[self.key]])
        before = [
            torch.cat(pieces, 1).unflatten(-1, (num_heads, -1)).transpose(1, 2)
            for pieces in zip(*sets, strict=True)
        ]
        return torch.cat([before[0], keys], dim=2), torch.cat([before[1], values], dim=2)
