"""The skeleton that all bottleneck adapters have in common: behind each attention and feed-forward
sub-layer

    A(x) = x + [norm]( up( g( down( [norm](x) ) ) ) ),    g = GELU, tanh approximation

acting on the sub-layer's output before dropout and residual (Houlsby et al. 2019,
https://arxiv.org/abs/1902.00751, as in VL-Adapter, Sung et al. 2022,
https://arxiv.org/abs/2112.06825). Methods say what `down` and `up` are. Most hold weights
in stacks: one pair for all tasks (`single`), one per task (`multiple`), or one per task
whose up or down half, bias included, is common to all (`half_shared_up`, `half_shared_down`).
"""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlds.methods.base import (
    CROSS_ATTENTION,
    LinearExtension,
    Method,
    Sharing,
    check_sharing,
    extend_linear,
    find_linears,
    weight_options,
)
from vlds.methods.cases import LAYERS, WIDTH
from vlds.methods.extended import added_tensors
from vlds.methods.layouts import LIBRARY_NAMES, Layout, Library, Stored
from vlds.methods.routing import TaskRouting
from vlds.schema import Role, TargetModules

Half = Callable[[Tensor], Tensor]
"""One half of a bottleneck for one task: (..., in) -> (..., out)."""
PLACES: dict[Library, dict[str, str]] = {
    "adapters": {
        r"(.+)\.(SelfAttention\.o|EncDecAttention\.o|DenseReluDense\.wo)": r"\1.adapters",
        r"(.+)\.self_attn\.out_proj": r"\1.attention_adapters.adapters",
        r"(.+)\.encoder_attn\.out_proj": r"\1.cross_attention_adapters.adapters",
        r"(.+)\.fc2": r"\1.output_adapters.adapters",
    },
    "reference": {
        r"(.+\.encoder\..+)\.self_attn\.out_proj": r"\1.attn_adapter",
        r"(.+\.decoder\..+)\.self_attn\.out_proj": r"\1.self_attn_adapter",
        r"(.+)\.(encoder_attn\.out_proj|EncDecAttention\.o)": r"\1.enc_attn_adapter",
        r"(.+)\.SelfAttention\.o": r"\1.attn_adapter",
        r"(.+)\.(fc2|DenseReluDense\.wo)": r"\1.ff_adapter",
    },
}
"""Linear layer of the backbone -> the module that holds its adapters in a library."""
NORMS: dict[Library, dict[str, tuple[str, ...]]] = {
    "adapters": {
        "pre": ("{task}.adapter_norm_before", "{task}.adapter_down.0"),
        "post": ("{task}.adapter_norm_after",),
    },
    "reference": {"pre": ("pre_layer_norm",), "post": ("post_layer_norm",)},
}
"""Norm of a bottleneck -> its names in a library."""
NARROW = WIDTH // 4
NUM_PLACES = LAYERS * (2 + 3)
DOWN_SIZE, UP_SIZE = NARROW * WIDTH + NARROW, WIDTH * NARROW + WIDTH
"""Of the contract tests' cases, which have `reduction: 4`: width of the bottleneck, bottlenecks of
the model, weights of the halves."""


class Place(NamedTuple):
    """Where a bottleneck goes."""

    role: Role
    path: str
    linear: nn.Linear


@dataclass(frozen=True, kw_only=True)
class Bottleneck(Method):
    """What all bottleneck adapters have in common."""

    reduction: int = 8
    """Width of the model divided by the width of the bottleneck."""
    cross_attention: bool = True
    """Bottlenecks behind cross-attention too."""

    def __post_init__(self) -> None:
        if self.reduction < 1:
            raise ValueError(f"reduction: got {self.reduction}; give at least 1")

    def places(self, model: nn.Module, targets: TargetModules) -> Iterator[Place]:
        """Every output projection of attention and feed-forward layers."""
        roles: list[Role] = ["attn_out", "ffn_out"]
        if self.cross_attention:
            roles.append("cross_attn_out")
        for role in roles:
            linears = find_linears(model, targets, role, optional=CROSS_ATTENTION)
            for path, linear in linears.items():
                yield Place(role, path, linear)


class BottleneckModule(LinearExtension):
    """The bottlenecks of all tasks behind one layer.

    Subclasses own all their weights themselves: ZeRO-3 gathers them once when this module runs, how
    many tasks a rank may hold.
    """

    def __init__(self, config: Bottleneck, linear: nn.Linear, routing: TaskRouting) -> None:
        super().__init__()
        self.routing = routing
        self.pre_norm: nn.Module | None = None
        self.post_norm: nn.Module | None = None
        self.width = linear.out_features
        self.bottleneck = self.width // config.reduction
        if self.bottleneck < 1:
            raise ValueError(
                f"reduction: {config.reduction} leaves nothing of a layer {self.width} wide; give "
                f"at most {self.width}"
            )

    def halves(self) -> tuple[Sequence[Half], Sequence[Half]]:
        """The down and the up halves: one of each task, or one for all."""
        raise NotImplementedError

    def forward(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """(b, l, d) -> (b, l, d): each row through its task's bottleneck."""
        states = outputs if self.pre_norm is None else self.pre_norm(outputs)
        down, up = self.halves()

        def bottleneck(rows: Tensor, task: int) -> Tensor:
            hidden = F.gelu(down[task if len(down) > 1 else 0](rows), approximate="tanh")
            return up[task if len(up) > 1 else 0](hidden)

        shared = len(down) == len(up) == 1
        states = bottleneck(states, 0) if shared else self.routing.apply(bottleneck, states)
        if self.post_norm is not None:
            states = self.post_norm(states)
        return outputs + states


@dataclass(frozen=True, kw_only=True)
class StackedBottleneck(Bottleneck):
    """Bottlenecks that hold their weights, stacked over tasks."""

    libraries: ClassVar[frozenset[Library]] = frozenset({"adapters", "reference"})
    leaves: ClassVar[Mapping[str, str]]
    """What a half is made of: our name -> that in the original code and in adapters."""

    sharing: Sharing = "single"
    """Which weights the tasks have in common: all, none, the up halves, or the down halves."""
    layer_norm_before: bool = False
    """A layer norm before the bottleneck, common to all tasks."""
    layer_norm_after: bool = False
    """A layer norm after it, before the adapter's own residual, common to all tasks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sharing(self.part, self.sharing)

    def attach(
        self,
        name: str,
        model: nn.Module,
        targets: TargetModules,
        tasks: Sequence[str],
        routing: TaskRouting,
    ) -> list[nn.Parameter]:
        """Put a bottleneck at every place."""
        make = self.maker(targets, len(tasks), routing)
        trained: list[nn.Parameter] = []
        for place in self.places(model, targets):
            module = make(place.linear)
            extend_linear(model, place.path, name, module)
            trained += module.parameters()
        return trained

    @abstractmethod
    def maker(
        self, targets: TargetModules, num_tasks: int, routing: TaskRouting
    ) -> Callable[[nn.Linear], StackedBottleneckModule]:
        """What makes the module behind a linear layer."""

    def layout(self, library: Library, name: str, model: Any) -> Layout:
        """The halves and norms of each bottleneck."""
        tensors = {}
        for tensor in added_tensors(model, name):
            place, (half, _, leaf) = place_of(library, tensor.layer), tensor.leaf.partition("_")
            if half in NORMS[library]:
                leaf = leaf.removeprefix("norm.")
                keys = tuple(f"{place}.{norm}.{leaf}" for norm in NORMS[library][half])
                tensors[tensor.name] = Stored(keys, stacked=False)
                continue
            if library == "adapters":
                number = f".{int(self.layer_norm_before)}" if half == "down" else ""
                key = f"{place}.{{task}}.adapter_{half}{number}.{self.leaves[leaf]}"
            else:
                key = f"{place}.adapters.{{task}}.{half}_sampler.{self.leaves[leaf]}"
            tensors[tensor.name] = Stored((key,))
        return Layout(tensors, self.adapters_config() if library == "adapters" else {})

    def adapters_config(self) -> dict[str, Any]:
        """Settings of the library adapters that differ from an adapter's usual ones."""
        return {
            "reduction_factor": self.reduction,
            "cross_adapter": self.cross_attention,
            "ln_before": self.layer_norm_before,
            "ln_after": self.layer_norm_after,
        }


def place_of(library: Library, layer: str) -> str:
    """The module that holds a layer's adapters in a library."""
    for pattern, place in PLACES[library].items():
        if match := re.fullmatch(pattern, layer):
            return match.expand(place)
    raise ValueError(f"{layer}: {LIBRARY_NAMES[library]} has no adapters there")


class StackedBottleneckModule(BottleneckModule):
    """Bottlenecks that hold their weights: `num_down` and `num_up` slices, one per task or 1."""

    def __init__(
        self, config: StackedBottleneck, linear: nn.Linear, num_tasks: int, routing: TaskRouting
    ) -> None:
        super().__init__(config, linear, routing)
        self.options = weight_options(linear)
        self.num_down = 1 if config.sharing in ("single", "half_shared_down") else num_tasks
        self.num_up = 1 if config.sharing in ("single", "half_shared_up") else num_tasks
        if config.layer_norm_before:
            self.pre_norm = nn.LayerNorm(self.width, **self.options)
        if config.layer_norm_after:
            self.post_norm = nn.LayerNorm(self.width, **self.options)

    def new_factor(self, *shape: int) -> nn.Parameter:
        """Matrices (..., in, out) from Xavier's uniform distribution with gain sqrt(2), as the
        original code draws PHM and low-rank layers."""
        bound = math.sqrt(2) * math.sqrt(6 / (shape[-2] + shape[-1]))
        factor = torch.empty(*shape, **self.options)
        return nn.Parameter(nn.init.uniform_(factor, -bound, bound))
