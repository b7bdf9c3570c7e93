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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlds.models.methods.base import (
    LIBRARY_NAMES,
    Layout,
    Library,
    Method,
    Sharing,
    Stored,
    check_sharing,
    num_slices,
)
from vlds.models.methods.context import TaskRouting
from vlds.models.methods.host import (
    CROSS_ATTENTION,
    Host,
    LinearExtension,
    added_tensors,
    extended,
    weight_options,
)
from vlds.runtime.checks import Count, MadeForBatch
from vlds.schema import OptimizerRule, OptimizerRules, Role

Nonlinearity = Literal["gelu_tanh", "gelu", "relu", "silu"]
NAMES_IN_ADAPTERS: dict[Nonlinearity, str] = {
    "gelu_tanh": "gelu_new", "gelu": "gelu", "relu": "relu", "silu": "swish",
}  # fmt: skip
# On T5, adapters keeps a sub-layer's adapters in the sub-layer's own module; on BART, in a module
# of the layer for each of its sub-layers.
LIBRARY_PLACES: dict[Library, dict[str, str]] = {
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
LIBRARY_NORMS: dict[Library, dict[str, tuple[str, ...]]] = {
    "adapters": {
        # It holds the norm twice: by name, and as the first element of the down half.
        "pre": ("{task}.adapter_norm_before", "{task}.adapter_down.0"),
        "post": ("{task}.adapter_norm_after",),
    },
    "reference": {"pre": ("pre_layer_norm",), "post": ("post_layer_norm",)},
}
"""Norm of a bottleneck -> its names in a library."""


class BottleneckPlace(NamedTuple):
    """A layer that gets a bottleneck."""

    role: Role
    path: str
    linear: nn.Linear


@dataclass(frozen=True, kw_only=True)
class Bottleneck(Method):
    """Base of all bottleneck adapters: where they stand, and how wide they are."""

    reduction: Count = 8
    """Width of the model divided by the width of the bottleneck."""
    attention: bool = True
    """Bottlenecks behind self-attention; those behind feed-forward layers are always there."""
    cross_attention: bool = True
    """Bottlenecks behind cross-attention."""
    parallel: bool = False
    """Bottlenecks beside feed-forward layers, whose input they read, instead of behind them (He et
    al. 2022, https://arxiv.org/abs/2110.04366)."""
    activation: Nonlinearity = "gelu_tanh"
    """Function between the halves; gelu_tanh is GELU's usual approximation."""

    def __post_init__(self) -> None:
        if self.parallel and (self.attention or self.cross_attention):
            raise ValueError(
                "parallel: got true, and adapters stand beside feed-forward layers alone; set "
                "attention and cross_attention to false, or parallel to false"
            )

    def places(self, host: Host) -> list[BottleneckPlace]:
        """The output projections of attention and feed-forward layers that get a bottleneck."""
        wanted: dict[Role, bool] = {
            "attn_out": self.attention,
            "ffn_out": True,
            "cross_attn_out": self.cross_attention,
        }
        return [
            BottleneckPlace(role, path, linear)
            for role, is_wanted in wanted.items()
            if is_wanted
            for path, linear in host.linears(role, optional=CROSS_ATTENTION).items()
        ]

    def refusal(self, library: Library, model: Any) -> str | None:
        """No layout holds bottlenecks beside layers; the original code has them behind every
        self-attention, with one activation."""
        # What a library lacks as a whole comes first; settings matter only where it has the method.
        if library not in self.libraries:
            return super().refusal(library, model)
        if library == "reference" and not (self.attention and self.activation == "gelu_tanh"):
            fields = {"attention": self.attention, "activation": self.activation}
            fixed = "attention: true and activation: gelu_tanh alone"
            return f"the original code has {fixed}, and the method has {fields}"
        if self.parallel:
            return "no layout of vlds holds adapters beside feed-forward layers (parallel: true)"
        return super().refusal(library, model)


def stand_beside(host: Host) -> None:
    """Let the host's bottlenecks read what their feed-forward layers read."""
    # A gated layer has two modules here, which read the same; the later one replaces the other.
    modules = {stack_and_layer(path): m for path, m in host.modules_of("ffn_in").items()}
    noted = {key: host.note_input(module) for key, module in modules.items()}
    for path, linear in host.linears("ffn_out").items():
        module = extended(linear).extensions[host.name]
        assert isinstance(module, BottleneckModule)
        module.beside = noted[stack_and_layer(path)]


def stack_and_layer(path: str) -> tuple[str, int]:
    """`model.encoder.layers.3.fc2` -> model_encoder_layers, 3."""
    match = re.match(r"(.+?)\.(\d+)\.", path)
    if match is None:
        raise ValueError(f"{path} is in no numbered layer; the method needs a stack of layers")
    return match[1].replace(".", "_"), int(match[2])


class BottleneckModule(LinearExtension):
    """The bottlenecks of all tasks behind one layer.

    Subclasses hold all their weights directly: ZeRO-3 gathers them once when this module runs,
    however many tasks a rank holds.
    """

    def __init__(self, config: Bottleneck, linear: nn.Linear, routing: TaskRouting) -> None:
        super().__init__()
        # The functions of ACTIVATIONS have names, so that modules can be pickled.
        self.routing, self.activation = routing, ACTIVATIONS[config.activation]
        self.beside: MadeForBatch | None = None
        """The input of the feed-forward layer, for bottlenecks beside it."""
        self.pre_norm: nn.Module | None = None
        self.post_norm: nn.Module | None = None
        self.width = linear.out_features
        self.bottleneck = self.width // config.reduction
        if self.bottleneck < 1:
            raise ValueError(
                f"reduction: {config.reduction} leaves nothing of a layer {self.width} wide; give "
                f"at most {self.width}"
            )

    def halves(self) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Weights of the down and of the up half, each (tasks or 1, ...), as `layer` takes them."""
        raise NotImplementedError

    def layer(self, rows: Tensor, *weights: Tensor) -> Tensor:
        """Rows (k, ..., in) through a half of k tasks' weights, or rows (..., in) through one's:
        (k, ..., out) or (..., out)."""
        raise NotImplementedError

    def forward(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """(b, l, d) -> (b, l, d): each row through its task's bottleneck."""
        states = outputs if self.beside is None else self.beside.take()
        if self.pre_norm is not None:
            states = self.pre_norm(states)
        states = self.through(states)
        if self.post_norm is not None:
            states = self.post_norm(states)
        return outputs + states

    def through(self, states: Tensor) -> Tensor:
        """(b, l, d) -> (b, l, d): each row through its task's halves."""
        down, up = self.halves()

        def bottleneck(rows: Tensor, *weights: Tensor) -> Tensor:
            narrow = self.activation(self.layer(rows, *weights[: len(down)]))
            return self.layer(narrow, *weights[len(down) :])

        return self.routing.apply_stacked(bottleneck, states, down, up)


@dataclass(frozen=True, kw_only=True)
class StackedBottleneck(Bottleneck):
    """Bottlenecks that hold their weights, stacked over tasks."""

    libraries: ClassVar[frozenset[Library]] = frozenset({"adapters", "reference"})
    library_leaves: ClassVar[Mapping[str, str]]
    """Weight of a half, one of `leaves` -> its name in the original code and in adapters."""

    sharing: Sharing = "single"
    """Weights that the tasks have in common: all, none, the up halves, or the down halves."""
    layer_norm_before: bool = False
    """A layer norm before the bottleneck, common to all tasks."""
    layer_norm_after: bool = False
    """A layer norm after it, before the adapter's own residual, common to all tasks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sharing(self.part, self.sharing)

    def attach(self, host: Host) -> list[nn.Parameter]:
        """Put a bottleneck at every place."""
        # The first module holds what all modules share.
        modules: list[StackedBottleneckModule] = []
        for place in self.places(host):
            modules.append(self.module(place.linear, host, modules[:1]))
            host.extend_linear(place.linear, modules[-1])
        if self.parallel:
            stand_beside(host)
        return [parameter for module in modules for parameter in module.parameters()]

    @abstractmethod
    def module(self, linear: nn.Linear, host: Host, first: list[Any]) -> StackedBottleneckModule:
        """The module behind a linear layer. `first`: the host's first module, if there is one, for
        weights that all modules share."""

    def layout(self, library: Library, name: str, model: Any) -> Layout:
        """The halves and norms of each bottleneck."""
        tensors = {}
        for tensor in added_tensors(model, name):
            matches = (
                (re.fullmatch(p, tensor.layer), to) for p, to in LIBRARY_PLACES[library].items()
            )
            place = next((match.expand(to) for match, to in matches if match), None)
            if place is None:
                raise ValueError(f"{tensor.layer}: {LIBRARY_NAMES[library]} has no adapters there")
            # down_weight, or pre_norm.weight of the norm before.
            half, _, leaf = tensor.leaf.partition("_")
            if half in LIBRARY_NORMS[library]:
                leaf = leaf.removeprefix("norm.")
                keys = tuple(f"{place}.{norm}.{leaf}" for norm in LIBRARY_NORMS[library][half])
                tensors[tensor.name] = Stored(keys, stacked=False)
                continue
            if library == "adapters":
                # Its down half is a sequence: the norm before, if there is one, then the layer.
                number = f".{int(self.layer_norm_before)}" if half == "down" else ""
                key = f"{place}.{{task}}.adapter_{half}{number}.{self.library_leaves[leaf]}"
            else:
                key = f"{place}.adapters.{{task}}.{half}_sampler.{self.library_leaves[leaf]}"
            tensors[tensor.name] = Stored((key,))
        return Layout(tensors, self.adapters_config() if library == "adapters" else {})

    def adapters_config(self) -> dict[str, Any]:
        """Settings of the library adapters that differ from an adapter's usual ones."""
        return {
            "reduction_factor": self.reduction,
            "mh_adapter": self.attention,
            "cross_adapter": self.cross_attention,
            "non_linearity": NAMES_IN_ADAPTERS[self.activation],
            "ln_before": self.layer_norm_before,
            "ln_after": self.layer_norm_after,
        }


class StackedBottleneckModule(BottleneckModule):
    """Bottlenecks that hold their weights: `num_down` and `num_up` slices, one per task or 1."""

    leaves: tuple[str, ...]
    """Names of a half's weights, without `down_` or `up_`, in the order in which `layer` takes
    them."""

    def __init__(self, config: StackedBottleneck, linear: nn.Linear, host: Host) -> None:
        super().__init__(config, linear, host.context.routing)
        self.options = weight_options(linear)
        self.num_down, self.num_up = num_slices(config.sharing, len(host.tasks))
        if config.layer_norm_before:
            self.pre_norm = nn.LayerNorm(self.width, **self.options)
        if config.layer_norm_after:
            self.post_norm = nn.LayerNorm(self.width, **self.options)
        norms = {"pre_norm": config.layer_norm_before, "post_norm": config.layer_norm_after}
        self.multipliers = [f"{norm}.weight" for norm, is_there in norms.items() if is_there]

    def new_factor(self, *shape: int) -> nn.Parameter:
        """Matrices (..., in, out) from Xavier's uniform distribution with gain sqrt(2), as the
        original code draws PHM and low-rank layers."""
        # nn.init.xavier_uniform_ would take the sizes of a stack for those of a convolution.
        bound = math.sqrt(2) * math.sqrt(6 / (shape[-2] + shape[-1]))
        factor = torch.empty(*shape, **self.options)
        return nn.Parameter(nn.init.uniform_(factor, -bound, bound))

    def halves(self) -> tuple[list[Tensor], list[Tensor]]:
        down, up = (
            [getattr(self, f"{half}_{leaf}") for leaf in self.leaves] for half in ("down", "up")
        )
        return down, up


def both_halves(**rules: OptimizerRule) -> OptimizerRules:
    """The rules of a half's weights, for `down_*` and `up_*`."""
    return {f"{half}_{leaf}": rule for half in ("down", "up") for leaf, rule in rules.items()}


def gelu_tanh(rows: Tensor) -> Tensor:
    """GELU, approximated with a tanh, as in the original code."""
    return F.gelu(rows, approximate="tanh")


ACTIVATIONS: dict[Nonlinearity, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": gelu_tanh,
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
}
