"""VL-PET (Hu et al. 2023, https://arxiv.org/abs/2308.09804). In the encoder, bottlenecks behind
attention and feed-forward layers have a gate,

    y = S + up( g( down(S) ) ),    out = scale * G * y,

where S is what the layer gives and X what its residual connection carries. The gates differ in how
fine G is:

    large      sigmoid( V_up g( V_down X + c_down ) + c_up )          a number per token and channel
    middle_x   sigmoid( v (X + y) + c )                               per token
    middle_y   1 + z                                                  per channel
    small      the mean over tokens of sigmoid( v [X; y] + c )        per example

In the decoder, only cross-attention has something: its values get an adapter beside their
projection. The encoder's norms train. G multiplies the frozen layer's output too, so the encoder
begins far from what it was.

As the original code, which differs from the paper's figure (`z + 1` without a sigmoid, y in place
of S inside the gates).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from vlds.models.methods.adapter import Adapter, init_linear
from vlds.models.methods.base import Layout, Library, Method, Stored
from vlds.models.methods.bottleneck import gelu_tanh
from vlds.models.methods.compacter import Compacter
from vlds.models.methods.host import Host, LinearExtension, added_tensors, weight_options
from vlds.runtime.checks import Count, MadeForBatch, NotNegative
from vlds.schema import OptimizerRule, OptimizerRules, Role

Granularity = Literal["large", "middle_x", "middle_y", "small"]
RESIDUAL_ROLES: dict[Role, Role] = {"attn_out": "attn_residual", "ffn_out": "ffn_residual"}
"""Role of layers with gates -> role of the modules that read what their residual carries."""
SUBLAYERS = {
    r"(.+)\.(?:self_attn\.out_proj|SelfAttention\.o)": "attn",
    r"(.+)\.(?:fc2|DenseReluDense\.wo)": "ff",
    r"(.+)\.(?:v_proj|v)": "value",
}
"""Linear layer -> its module in VL-PET's code, and the word there."""


@dataclass(frozen=True, kw_only=True)
class VLPET(Method):
    """Gated bottlenecks in the encoder, adapters beside the values of cross-attention."""

    libraries: ClassVar[frozenset[Library]] = frozenset({"reference"})
    reasons: ClassVar[Mapping[Library, str]] = {
        library: f"{library} has no gates" for library in ("peft", "adapters")
    }

    of: Method = field(default_factory=Adapter)
    """The encoder's bottlenecks: Adapter or Compacter."""
    gate: Granularity = "large"
    """Granularity of the gates: per token and channel (large), per token, per channel, or per
    example (small)."""
    gate_width: Count = 96
    """Width of the hidden layer of large gates."""
    value_width: Count = 96
    """Width of the adapters beside values."""
    heads: Count = 4
    """In how many tensors the original code stores a down half; without effect on what it
    computes."""
    scale: NotNegative = 1.0
    """Factor behind the gates; 0.3 in the paper's runs of T5."""
    start: Literal["zero", "random"] = "random"
    """Last layers of gates and adapters: zero, as the paper's runs of T5, or random, as those of
    BART."""
    padding_counts: bool = False
    """Small gates: take the mean over padding too, as the original code does. An example's output
    then depends on the others of its batch."""

    def __post_init__(self) -> None:
        if not isinstance(self.of, (Adapter, Compacter)):
            raise ValueError(f"of: got {type(self.of).__name__}; choose Adapter or Compacter")
        if self.of.part != "backbone" or self.of.learning_rate is not None:
            raise ValueError("of: set learning_rate at VLPET itself")
        if not self.of.attention:
            raise ValueError(
                "of.attention: got false, and gates stand behind attention too; leave it at true"
            )
        if self.part != "backbone":
            raise ValueError(f"part: got {self.part}; VLPET tunes an encoder-decoder: backbone")
        if self.padding_counts and self.gate != "small":
            raise ValueError(f"padding_counts: got true, which gate: {self.gate} does not read")

    def attach(self, host: Host) -> list[nn.Parameter]:
        """Put gated bottlenecks into the encoder and adapters beside the decoder's values.

        Errors: ValueError if the model is not that of JointSeq2Seq.
        """
        # Checked before anything is attached, since models of one stack have some of these roles.
        for needed in ("cross_attn_v", *RESIDUAL_ROLES.values()):
            if needed not in host.targets.paths:
                raise ValueError(
                    "VLPET stands in the encoder and the decoder of the kind JointSeq2Seq, and no "
                    f"layer of {type(host.model).__name__} plays the role '{needed}'; choose that "
                    "kind, or another method, such as Adapter"
                )
        encoder = replace(host, stack="encoder")
        values = host.linears("cross_attn_v")
        trained = self.of.attach(encoder)
        # Each gate takes the bottleneck's place behind its layer, and holds it.
        for role, residual_role in RESIDUAL_ROLES.items():
            linears, residuals = encoder.linears(role), encoder.modules_of(residual_role)
            for linear, residual in zip(linears.values(), residuals.values(), strict=True):
                gated = Gated(self, linear, host.note_input(residual), host)
                host.extend_linear(linear, gated)
                trained += gated.gate.parameters()
        for linear in values.values():
            beside = ValueAdapter(self, linear, host)
            host.extend_linear(linear, beside)
            trained += beside.parameters()
        trained += [p for norm in encoder.modules_of("norm").values() for p in norm.parameters()]
        return trained

    def refusal(self, library: Library, model: Any) -> str | None:
        if library == "reference":
            if not isinstance(self.of, Adapter):
                return f"the original code has no gates around {type(self.of).__name__}"
            if self.of.sharing != "single":
                return (
                    f"the original code has one encoder for all tasks (sharing {self.of.sharing})"
                )
            if (width := model.config.d_model // self.of.reduction) % self.heads:
                return (
                    f"heads: got {self.heads}, which does not divide the {width} units that they "
                    "share"
                )
        return super().refusal(library, model)

    def layout(self, library: Library, name: str, model: Any) -> Layout:
        """Halves, gates and adapters beside values, as VL-PET's code names them."""
        tensors = {}
        for tensor in added_tensors(model, name):
            matches = ((re.fullmatch(p, tensor.layer), word) for p, word in SUBLAYERS.items())
            owners = [(match[1], word) for match, word in matches if match]
            if not owners:
                raise ValueError(f"{tensor.layer}: VL-PET's code has nothing there")
            owner, sublayer = owners[0]
            # bottleneck.down_weight, gate.down.weight, or down.weight of a ValueAdapter.
            module, _, leaf = tensor.leaf.partition(".")
            if module == "bottleneck":
                half, _, leaf = leaf.partition("_")
                # Its down half is multi-head: `heads` tensors, whose rows ours holds in one.
                parts = self.heads if half == "down" else 1
                head = ".{part}" if half == "down" else ""
                key = f"{owner}.{sublayer}_adapter_multihead_{half}{head}.{leaf}"
                tensors[tensor.name] = Stored((key,), num_parts=parts)
            elif module == "gate":
                key = f"{owner}.encoder_{sublayer}_adapter_gating_{GATES[self.gate].names[leaf]}"
                tensors[tensor.name] = Stored((key,), stacked=False)
            else:
                adapter = f"{owner}.attn_value_parallel_adapter.adapters.{{task}}"
                key = f"{adapter}.{module}_sampler.{leaf}"
                tensors[tensor.name] = Stored((key,), stacked=False)
        return Layout(tensors)


class Gated(LinearExtension):
    """A bottleneck behind one layer of the encoder, with its gate."""

    def __init__(self, config: VLPET, linear: Any, residual: MadeForBatch, host: Host) -> None:
        super().__init__()
        # Taken over from the layer, where this module will stand under the same name.
        self.bottleneck, self.scale = linear.extensions[host.name], config.scale
        self.gate = GATES[config.gate](config, linear, host)
        self.residual = residual

    def forward(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """(b, l, d) -> (b, l, d)."""
        states: Tensor = self.bottleneck(inputs, outputs)
        factors: Tensor = self.gate(self.residual.take(), states)
        return self.scale * factors * states


class Gate(nn.Module):
    """Makes factors (b or 1, l or 1, d or 1) from the residual and the states, both (b, l, d)."""

    names: ClassVar[Mapping[str, str]]
    """Path of a tensor -> its name in VL-PET's code."""

    def __init__(self, config: VLPET, linear: nn.Linear, host: Host) -> None:
        super().__init__()
        self.context, self.padding_counts = host.context, config.padding_counts
        self.build(config, linear.out_features, weight_options(linear))
        # Behind the loop, `last` is the layer that makes the factors; MiddleYGate has no layer.
        last: nn.Module | None = None
        for last in (module for module in self.modules() if isinstance(module, nn.Linear)):
            init_linear(last.weight, last.bias, host.targets.linear_init_std)
        if config.start == "zero" and isinstance(last, nn.Linear):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def build(self, config: VLPET, width: int, options: dict[str, Any]) -> None:
        """Make the weights."""
        raise NotImplementedError


class LargeGate(Gate):
    """A number per token and channel."""

    names: ClassVar[Mapping[str, str]] = {
        "down.weight": "large_x_down.weight",
        "down.bias": "large_x_down.bias",
        "up.weight": "large_x_up.weight",
        "up.bias": "large_x_up.bias",
    }

    def build(self, config: VLPET, width: int, options: dict[str, Any]) -> None:
        self.down = nn.Linear(width, config.gate_width, **options)
        self.up = nn.Linear(config.gate_width, width, **options)
        if config.start == "zero":
            self.behind_zeros = ("down.weight", "down.bias")

    def forward(self, residual: Tensor, states: Tensor) -> Tensor:
        factors: Tensor = self.up(gelu_tanh(self.down(residual))).sigmoid()
        return factors


class MiddleXGate(Gate):
    """A number per token."""

    names: ClassVar[Mapping[str, str]] = {
        "vector.weight": "middle_xy_add.weight",
        "vector.bias": "middle_xy_add.bias",
    }

    def build(self, config: VLPET, width: int, options: dict[str, Any]) -> None:
        self.vector = nn.Linear(width, 1, **options)

    def forward(self, residual: Tensor, states: Tensor) -> Tensor:
        factors: Tensor = self.vector(residual + states).sigmoid()
        return factors


class MiddleYGate(Gate):
    """A number per channel."""

    names: ClassVar[Mapping[str, str]] = {"offset": "middle_ia3_add"}
    # Decayed in the original code too.
    optimizer_rules: ClassVar[OptimizerRules] = {"offset": OptimizerRule()}

    def build(self, config: VLPET, width: int, options: dict[str, Any]) -> None:
        self.offset = nn.Parameter(torch.zeros(width, **options))
        if config.start == "random":
            nn.init.normal_(self.offset, std=0.02)

    def forward(self, residual: Tensor, states: Tensor) -> Tensor:
        return 1 + self.offset


class SmallGate(Gate):
    """A number per example."""

    names: ClassVar[Mapping[str, str]] = {
        "vector.weight": "small_xy_cat.weight",
        "vector.bias": "small_xy_cat.bias",
    }

    def build(self, config: VLPET, width: int, options: dict[str, Any]) -> None:
        self.vector = nn.Linear(2 * width, 1, **options)

    def forward(self, residual: Tensor, states: Tensor) -> Tensor:
        factors = self.vector(torch.cat([residual, states], -1)).sigmoid()
        if self.padding_counts:
            mean: Tensor = factors.mean(1, keepdim=True)
            return mean
        mask = self.context.token_mask
        assert mask is not None, "the model says which tokens its encoder reads"
        real = mask[..., None].to(factors)
        of_example: Tensor = (factors * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)
        return of_example


GATES: Mapping[str, type[Gate]] = {
    "large": LargeGate, "middle_x": MiddleXGate, "middle_y": MiddleYGate, "small": SmallGate,
}  # fmt: skip


class ValueAdapter(LinearExtension):
    """Adds up( g( down(inputs) ) ) to what the projection of values gives."""

    def __init__(self, config: VLPET, linear: nn.Linear, host: Host) -> None:
        super().__init__()
        options = weight_options(linear)
        self.down = nn.Linear(linear.in_features, config.value_width, **options)
        self.up = nn.Linear(config.value_width, linear.out_features, **options)
        init_linear(self.down.weight, self.down.bias, host.targets.linear_init_std)
        init_linear(self.up.weight, self.up.bias, host.targets.linear_init_std)
        if config.start == "zero":
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)
            self.behind_zeros = ("down.weight", "down.bias")

    def forward(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """(b, s, d) and (b, s, v) -> (b, s, v)."""
        beside: Tensor = self.up(gelu_tanh(self.down(inputs)))
        return outputs + beside
