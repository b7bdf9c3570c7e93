"""The networks that make HyperPELT's prefixes and adapters, from embeddings of task, layer and
block, and from the example's pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from vlds.methods.bottleneck import Place, stack_and_layer
from vlds.methods.host import CROSS_ATTENTION, Host, weight_options
from vlds.methods.hypernetwork import GENERATOR_STD, HyperNetwork, HyperNetworks, rows_of
from vlds.runtime.made_for_batch import MadeForBatch
from vlds.schema import Role

if TYPE_CHECKING:
    from vlds.methods.hyper_pelt import HyperPELT

Key = tuple[str, Role, int]
"""Stack, kind of sub-layer and layer."""
PREFIXED: dict[Role, Role] = {"attn_k": "attn_out", "cross_attn_k": "cross_attn_out"}
"""Keys' projection -> kind of its sub-layer."""


class PELTNetworks(HyperNetworks):
    """The networks of both sets."""

    def __init__(self, config: HyperPELT, places: list[Place], host: Host) -> None:
        std = host.targets.linear_init_std
        super().__init__(config, places, len(host.tasks), std)
        self.key_width = 0
        self.attentions: dict[str, Key] = {}
        """Path of an attention's keys -> the prefixes before them."""
        self.context, options = host.context, weight_options(places[0].linear)
        self.of_pictures, self.prefixes, self.picture_prefixes = (MadeForBatch() for _ in range(3))
        kinds: dict[str, list[Role]] = {}
        for role, kind in PREFIXED.items() if config.prefix_length else ():
            for path, linear in host.linears(role, optional=CROSS_ATTENTION).items():
                stack, layer = stack_and_layer(path)
                self.attentions[path], self.key_width = (stack, kind, layer), linear.out_features
                if kind not in kinds.setdefault(stack, []):
                    kinds[stack].append(kind)

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
