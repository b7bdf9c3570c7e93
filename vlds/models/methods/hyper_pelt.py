"""HyperPELT (Zhang et al. 2023, https://arxiv.org/abs/2203.03878): networks that make prefixes for
every attention and adapters beside every feed-forward layer. One set is made from embeddings of
task, layer and block, as Hyperformer's; a second one, from an embedding of the example's pictures,
of layer and of block, stands beside the first.

There is no public code. As the paper: what is made from what, and where it stands. Ours: the
picture's embedding is the mean of its visual tokens through a linear layer; the sizes; the two sets
have separate networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vlds.models.methods.base import Library, Method
from vlds.models.methods.bottleneck import BottleneckPlace, stack_and_layer, stand_beside
from vlds.models.methods.context import BatchContext
from vlds.models.methods.host import CROSS_ATTENTION, Host, weight_options
from vlds.models.methods.hyperformer import (
    GENERATOR_STD,
    Hyperformer,
    HyperformerModule,
    HyperNetwork,
    HyperNetworks,
    rows_of,
)
from vlds.models.methods.prefix_tuning import fixed_prefixes
from vlds.models.methods.sim_adapter import read_method, weights_hash
from vlds.runtime.checks import MadeForBatch, Natural, SourcePath
from vlds.schema import Role, TargetModules

Key = tuple[str, Role, int]
"""Stack, kind of sub-layer and layer."""
PREFIXED: dict[Role, Role] = {"attn_k": "attn_out", "cross_attn_k": "cross_attn_out"}
"""Keys' projection -> kind of its sub-layer."""
TASKS = "task_embeddings.weight"
"""The embeddings of the tasks, by their name in the networks."""


@dataclass(frozen=True, kw_only=True)
class HyperPELT(Hyperformer):
    """Prefixes and adapters that are made from task, layer, block and pictures."""

    libraries: ClassVar[frozenset[Library]] = frozenset()
    reasons: ClassVar[Mapping[Library, str]] = {}

    attention: bool = False
    cross_attention: bool = False
    kind_embeddings: bool = True
    parallel: bool = True
    prefix_length: Natural = 20
    """Keys and values before those of every attention, in each set; 0: none."""
    visual: bool = True
    """A second set that is made from the example's pictures."""
    weights: SourcePath | None = None
    """A run with HyperPELT of the same fields: its networks are the first ones here, and tasks that
    both have begin with its embeddings."""
    train_networks: bool = True
    """false: the networks stay those of `weights`, and only the embeddings of the tasks train."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if norms := self.made_norms:
            raise ValueError(f"{norms}: got true; HyperPELT's adapters have no norms")

    def attach(self, host: Host) -> list[nn.Parameter]:
        """Put adapters and prefixes into the model, and their networks beside it.

        Errors: ValueError if the model has no visual tokens, or takes no prefixes.
        """
        model = type(host.model).__name__
        if self.visual and not host.takes_prompts:
            raise ValueError(
                f"visual: got true, and {model} reads pictures itself, so that no visual tokens "
                "come before it; set visual: false"
            )
        if self.prefix_length and "attn_k" not in host.targets.paths:
            raise ValueError(
                f"prefix_length: got {self.prefix_length}, and no layer of {model} plays the role "
                "'attn_k', which tells how wide keys are; set prefix_length: 0"
            )
        places = self.places(host)
        networks = PELTNetworks(self, places, host)
        for place in places:
            host.extend_linear(place.linear, PELTModule(self, place, networks, host))
        if self.parallel:
            stand_beside(host)
        for path, key in networks.attentions.items():
            host.extend_attention(path, HyperPrefix(networks, key, host.context))
        if self.weights is not None:
            self.fill(networks, Path(self.weights), host.tasks)
        host.extend_model(networks)
        host.context.reads_examples |= self.visual
        return list((networks if self.train_networks else networks.task_embeddings).parameters())

    def check_steps(self, num_steps: int) -> None:
        """Errors: ValueError for a run whose networks would stay random."""
        if not self.train_networks and self.weights is None:
            raise ValueError(
                "train_networks: got false, and the networks would stay random; set weights to a "
                "run with HyperPELT"
            )

    def in_artifact(self) -> HyperPELT:
        # Without the run that the networks come from: the artifact holds them.
        return replace(self, weights=None)

    def resumed(self) -> HyperPELT:
        # Networks that train are in the run's state; frozen ones are read from their run again.
        return self.in_artifact() if self.train_networks else self

    def source_hashes(self) -> Mapping[str, str]:
        if self.weights is None or self.train_networks:
            return {}
        return {"weights": weights_hash(Path(self.weights))}

    @torch.no_grad()
    def fill(self, networks: PELTNetworks, run: Path, tasks: Sequence[str]) -> None:
        """Take the networks of another run, and its embeddings of these tasks.

        Errors: ValueError if it has none, or other ones.
        """
        other = read_method(run, HyperPELT, "name a run with HyperPELT")
        for name, theirs in other.settings.items():
            if name in ("learning_rate", "weights", "train_networks"):
                continue  # without effect on what given weights compute
            if (ours := getattr(self, name, None)) != theirs:
                raise ValueError(
                    f"weights: {name} is {theirs} in {run}, and {ours} here; set it so"
                )
        # The state's tensors share memory with the parameters: `copy_` below fills these.
        state, found = networks.state_dict(), dict(other.tensors[""])
        embeddings = state.pop(TASKS), found.pop(TASKS)
        for name, tensor in state.items():
            if name not in found or found[name].shape != tensor.shape:
                raise ValueError(
                    f"weights: {name} of {run} is missing or has another shape; name a run of the "
                    "same backbone"
                )
        # Without weights, as `vlds plan` builds models, names and shapes are all there is to check.
        if embeddings[0].is_meta:
            return
        for name, tensor in state.items():
            tensor.copy_(found[name])
        for number, task in enumerate(tasks):
            if task in other.tasks:
                embeddings[0][number].copy_(embeddings[1][other.tasks.index(task)])

    @torch.no_grad()
    def merge(self, name: str, model: nn.Module, tasks: Sequence[str]) -> Mapping[str, Method]:
        """Plain adapters for each task, and prefixes under the name NAME_prefix.

        Errors: ValueError if weights depend on the picture.
        """
        if self.visual:
            raise ValueError(
                "visual: got true, so that each picture makes its own weights, which no fixed ones "
                "can replace; use `vlds convert hf`, which keeps the networks beside the backbone, "
                "or train with visual: false"
            )
        networks = model.get_submodule(f"extensions.{name}")
        assert isinstance(networks, PELTNetworks)
        left = super().merge(name, model, tasks)  # makes the weights of all tasks
        if not networks.attentions:  # prefix_length: 0
            return left
        # In the order of PREFIXED: cross-attentions last, as `fixed_prefixes` needs them.
        made = {path: networks.prefixes.value[key] for path, key in networks.attentions.items()}
        for path in made:
            attention: Any = model.get_submodule(path.rpartition(".")[0])
            del attention.key_value_extensions[name]
        host = Host(f"{name}_prefix", model, TargetModules({}), tasks, networks.context)
        across = any(kind == "cross_attn_out" for _, kind, _ in networks.attentions.values())
        prefixes = fixed_prefixes(host, made, across)
        return {**left, host.name: replace(prefixes, learning_rate=self.learning_rate)}


class PELTNetworks(HyperNetworks):
    """The networks of both sets: from embeddings of task, layer and block, and from pictures."""

    def __init__(self, config: HyperPELT, places: list[BottleneckPlace], host: Host) -> None:
        std = host.targets.linear_init_std
        super().__init__(config, places, len(host.tasks), std)
        key_width = 0
        self.attentions: dict[str, Key] = {}
        """Path of an attention's keys -> the prefixes before them."""
        self.context, options = host.context, weight_options(places[0].linear)
        self.of_pictures, self.prefixes, self.picture_prefixes = (MadeForBatch() for _ in range(3))
        # Each stack's kinds in the order of PREFIXED, which is that of its head's outputs.
        kinds: dict[str, list[Role]] = {}
        for role, kind in PREFIXED.items() if config.prefix_length else ():
            for path, linear in host.linears(role, optional=CROSS_ATTENTION).items():
                stack, layer = stack_and_layer(path)
                self.attentions[path], key_width = (stack, kind, layer), linear.out_features
                if kind not in kinds.setdefault(stack, []):
                    kinds[stack].append(kind)

        def heads() -> nn.ModuleDict:
            return nn.ModuleDict(
                {n: PrefixHead(config, k, key_width, options, std) for n, k in kinds.items()}
            )

        self.heads = heads()
        self.visual_stacks, self.visual_heads = nn.ModuleDict(), nn.ModuleDict()
        self.look: nn.Linear | None = None
        """Mean of an example's visual tokens -> its embedding, in place of a task's."""
        if config.visual:
            # Of the twin's networks only the stacks: a picture's embedding replaces the tasks'.
            twin = HyperNetworks(config, places, 1, std)
            self.visual_stacks, self.visual_heads = twin.stacks, heads()
            table: Any = host.model.get_input_embeddings()  # type: ignore[operator]
            self.look = nn.Linear(table.embedding_dim, config.task_dim, **options)

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
            assert isinstance(network, HyperNetwork)
            made |= {
                (stack, *place): list(own) for place, own in network.by_layer(pictures).items()
            }
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
        place: BottleneckPlace,
        networks: PELTNetworks,
        host: Host,
    ) -> None:
        super().__init__(config, place, networks.generated, host.context.routing)
        self.context = host.context
        self.of_pictures = networks.of_pictures if config.visual else None

    def through(self, states: Tensor) -> Tensor:
        """(b, l, d) -> (b, l, d) through the bottlenecks of both sets."""
        of_tasks = super().through(states)
        if self.of_pictures is None:
            return of_tasks
        # Each row's own weights: beams of an example have the same ones.
        rows = self.context.examples
        down, down_bias, up, up_bias = (w[rows] for w in self.of_pictures.value[self.key])
        # Beams of an example, or all tokens in one line, become one row for each example.
        by_row = states.reshape(len(rows), -1, states.shape[-1])
        narrow = self.activation(torch.baddbmm(down_bias[:, None], by_row, down.mT))
        return of_tasks + torch.baddbmm(up_bias[:, None], narrow, up.mT).view_as(states)


class HyperPrefix(nn.Module):
    """The prefixes of one attention."""

    def __init__(self, networks: PELTNetworks, key: Key, context: BatchContext) -> None:
        super().__init__()
        self.of_tasks, self.context, self.key = networks.prefixes, context, key
        self.of_pictures = networks.picture_prefixes if networks.look is not None else None

    def forward(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """(b, heads, s, d) keys and values -> (b, heads, p + s, d)."""
        routing, num_heads = self.context.routing, keys.shape[1]
        sets = [[routing.of_keys(piece, len(keys)) for piece in self.of_tasks.value[self.key]]]
        if self.of_pictures is not None:
            beams = routing.num_rows // len(keys)  # which share the keys of an example
            rows = self.context.example_of_rows(routing.num_rows)[::beams]
            # In front: the pictures' prefixes, then the tasks', then the keys of the input.
            sets.insert(0, [piece[rows] for piece in self.of_pictures.value[self.key]])
        before = [
            torch.cat(pieces, 1).unflatten(-1, (num_heads, -1)).transpose(1, 2)
            for pieces in zip(*sets, strict=True)
        ]
        return torch.cat([before[0], keys], dim=2), torch.cat([before[1], values], dim=2)
