"""(IA)^3 (Liu et al. 2022, https://arxiv.org/abs/2205.05638): learned factors, at first 1, on the
keys and values of every attention and on the hidden units of every feed-forward layer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from vlds.models.methods.base import (
    PEFT_MODEL,
    Layout,
    Library,
    Method,
    Stored,
    check_sharing,
    num_slices,
)
from vlds.models.methods.host import (
    CROSS_ATTENTION,
    ExtendedLinear,
    Host,
    InputExtension,
    LinearExtension,
    added_tensors,
    foldable_weight,
    take_first,
    weight_options,
)
from vlds.schema import STACKED_UNDECAYED, OptimizerRules


@dataclass(frozen=True, kw_only=True)
class IA3(Method):
    """Factors on keys, values and hidden units."""

    libraries: ClassVar[frozenset[Library]] = frozenset({"peft"})
    reasons: ClassVar[Mapping[Library, str]] = {"adapters": "IA3 has `vlds convert peft`"}

    sharing: Literal["single", "multiple"] = "single"
    """One set of factors for all tasks, or one per task."""

    def __post_init__(self) -> None:
        check_sharing(self.part, self.sharing)

    def attach(self, host: Host) -> list[nn.Parameter]:
        """Factors behind key and value projections, and before the second feed-forward layer."""
        trained: list[nn.Parameter] = []
        roles = ("attn_k", "attn_v", "cross_attn_k", "cross_attn_v")
        for linear in host.linears(*roles, optional=CROSS_ATTENTION).values():
            behind = OutputFactors(self, linear, linear.out_features, host)
            host.extend_linear(linear, behind)
            trained.append(behind.factors)
        # On the hidden units: what the second feed-forward layer reads.
        for linear in host.linears("ffn_out").values():
            before = InputFactors(self, linear, linear.in_features, host)
            host.extend_input(linear, before)
            trained.append(before.factors)
        return trained

    @torch.no_grad()
    def merge(self, name: str, model: nn.Module, tasks: Sequence[str]) -> Mapping[str, Method]:
        """Multiply the weights and biases by the factors.

        Errors: ValueError if each task has its own factors, or a layer is quantised.
        """
        if self.sharing != "single":
            raise ValueError(
                f"sharing: {self.sharing}; one layer cannot hold the factors of several tasks"
            )
        # A list, since taking modules out changes what `modules()` walks over.
        for linear in [m for m in model.modules() if isinstance(m, ExtendedLinear)]:
            if name in linear.extensions:
                weight = foldable_weight(linear)
                module = take_first(linear, name)
                assert isinstance(module, OutputFactors)
                # diag(f) (W x + b): rows of the weight, and the bias.
                weight.mul_(module.factors[0][:, None])
                if linear.bias is not None:
                    linear.bias.mul_(module.factors[0])
            elif name in linear.input_extensions:
                weight = foldable_weight(linear)
                # What stands behind a layer reads its input, which folding would change.
                if linear.extensions:
                    raise ValueError(
                        f"{', '.join(linear.extensions)} may read what {name} multiplies; fold "
                        "that first, which means: name it earlier in the recipe"
                    )
                before = linear.input_extensions.pop(name)
                assert isinstance(before, InputFactors)
                # W diag(f) x: columns of the weight.
                weight.mul_(before.factors[0])
        return {}

    def layout(self, library: Library, name: str, model: Any) -> Layout:
        """One vector a layer; peft gives those before and behind a layer different shapes."""
        tensors, before = {}, []
        added = added_tensors(model, name)
        for tensor in added:
            # peft has columns behind layers, and rows before them.
            shape: tuple[int, ...] = (-1, 1)
            if tensor.place == "input_extensions":
                before.append(tensor.layer)
                shape = (1, -1)
            tensors[tensor.name] = Stored((f"{PEFT_MODEL}{tensor.layer}.ia3_l",), shape)
        targets = [tensor.layer for tensor in added]
        config = {"peft_type": "IA3", "target_modules": targets, "feedforward_modules": before}
        return Layout(tensors, config)


class Factors(nn.Module):
    """Factors beside a layer."""

    # Decay would pull factors towards 0, and a factor that changes nothing is 1.
    optimizer_rules: ClassVar[OptimizerRules] = {"factors": STACKED_UNDECAYED}
    multipliers: Collection[str] = ("factors",)

    def __init__(self, config: IA3, linear: nn.Linear, width: int, host: Host) -> None:
        super().__init__()
        self.routing = host.context.routing
        num, _ = num_slices(config.sharing, len(host.tasks))
        self.factors = nn.Parameter(torch.ones(num, width, **weight_options(linear)))

    def multiply(self, states: Tensor) -> Tensor:
        """(b, l, d), or (b * l, d) as some models have it, times each row's factors."""
        if len(self.factors) == 1:
            return states * self.factors[0]
        if states.ndim == 2:  # all tokens in one line, as OPT's layers have them
            by_row = self.routing.by_row(states)
            return (by_row * self.routing.of_rows(self.factors[:, None])).flatten(0, 1)
        return states * self.routing.of_rows(self.factors[:, None], len(states))


class OutputFactors(Factors, LinearExtension):
    """Factors behind a layer."""

    def forward(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        return self.multiply(outputs)


class InputFactors(Factors, InputExtension):
    """Factors before a layer."""

    def forward(self, inputs: Tensor) -> Tensor:
        return self.multiply(inputs)
