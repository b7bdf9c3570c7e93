"""Adapters whose halves are linear layers (Houlsby et al. 2019, https://arxiv.org/abs/1902.00751),
with VL-Adapter's ways of sharing over tasks (https://arxiv.org/abs/2112.06825, section 3.2). The
tasks' weights are stacked in one parameter (tasks or 1, ...).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from vlds.models.methods.base import Library, Sharing
from vlds.models.methods.bottleneck import (
    Bottleneck,
    BottleneckModule,
    StackedBottleneck,
    StackedBottleneckModule,
    both_halves,
)
from vlds.models.methods.context import BatchContext, stacked_linear
from vlds.models.methods.host import Host, extended_linears
from vlds.schema import STACKED, STACKED_UNDECAYED, OptimizerRules, TargetModules


@dataclass(frozen=True, kw_only=True)
class Adapter(StackedBottleneck):
    """Bottlenecks behind attention and feed-forward layers."""

    reasons: ClassVar[Mapping[Library, str]] = {
        "peft": "peft has no Adapter; `vlds convert adapters` has a layout for it"
    }
    library_leaves: ClassVar[Mapping[str, str]] = {"weight": "weight", "bias": "bias"}

    init: Literal["vl_adapter", "identity"] = "vl_adapter"
    """vl_adapter: as the original code, N(0, 0.02) on BART, PyTorch's default on T5. identity: W_up
    and b_up are 0."""

    def module(self, linear: nn.Linear, host: Host, first: list[Any]) -> AdapterModule:
        return AdapterModule(self, linear, host)


class AdapterModule(StackedBottleneckModule):
    """The adapters of all tasks behind one layer."""

    leaves = ("weight", "bias")
    neurons: ClassVar[Mapping[str, int]] = {"down_weight": 1, "down_bias": 1, "up_weight": 2}
    """Weight -> its dimension that numbers the bottleneck's neurons."""
    optimizer_rules: ClassVar[OptimizerRules] = both_halves(weight=STACKED, bias=STACKED_UNDECAYED)

    def __init__(self, config: Adapter, linear: nn.Linear, host: Host) -> None:
        super().__init__(config, linear, host)
        down, up = (self.num_down, self.bottleneck, self.width), (self.num_up, self.width)
        self.down_weight = nn.Parameter(torch.empty(*down, **self.options))
        self.down_bias = nn.Parameter(torch.empty(*down[:2], **self.options))
        self.up_weight = nn.Parameter(torch.empty(*up, self.bottleneck, **self.options))
        self.up_bias = nn.Parameter(torch.empty(*up, **self.options))
        init_linear(self.down_weight, self.down_bias, host.targets.linear_init_std)
        init_linear(self.up_weight, self.up_bias, host.targets.linear_init_std)
        if config.init == "identity":
            nn.init.zeros_(self.up_weight)
            nn.init.zeros_(self.up_bias)
            # No gradient passes an up half of zeros: the down half waits for the second step.
            self.behind_zeros = ("down_weight", "down_bias")

    def layer(self, rows: Tensor, *weights: Tensor) -> Tensor:
        return stacked_linear(rows, *weights)


def merge_first(method: str) -> dict[Library, str]:
    """`reasons` of a method that `materialise` makes an Adapter."""
    return {
        "peft": f"peft has no {method}; `vlds convert merge`, then `vlds convert adapters` has a "
        "layout for it",
        "adapters": f"adapters has no {method}; `vlds convert merge` makes it Adapter",
    }


@torch.no_grad()
def materialise(
    method: Bottleneck, sharing: Sharing, name: str, model: nn.Module, tasks: Sequence[str]
) -> Adapter:
    """Replace bottlenecks, whose halves are linear maps of any kind, by plain adapters that compute
    the same; the method that describes these."""
    stacked = method if isinstance(method, StackedBottleneck) else None
    adapter = Adapter(
        part=method.part,
        learning_rate=method.learning_rate,
        sharing=sharing,
        reduction=method.reduction,
        attention=method.attention,
        cross_attention=method.cross_attention,
        parallel=method.parallel,
        activation=method.activation,
        layer_norm_before=stacked is not None and stacked.layer_norm_before,
        layer_norm_after=stacked is not None and stacked.layer_norm_after,
    )
    for linear in extended_linears(model, name):
        old = linear.extensions[name]
        assert isinstance(old, BottleneckModule)
        # This host has no roles: it serves to put the new module in the old one's place.
        host = Host(name, model, TargetModules({}), tasks, BatchContext(old.routing))
        new = AdapterModule(adapter, linear, host)
        down, up = old.halves()
        for half, weight, bias in (
            (down, new.down_weight, new.down_bias),
            (up, new.up_weight, new.up_bias),
        ):
            # A linear map gives its bias for 0, and its bias plus a column for each unit vector: in
            # float32, since the difference of two numbers in bf16 may have few digits.
            eye = torch.eye(weight.shape[-1], device=weight.device)
            for index in range(len(weight)):
                of_task = [stack[index if len(stack) > 1 else 0][None].float() for stack in half]
                start = old.layer(torch.zeros_like(eye[:1]), *of_task)[0]
                bias[index] = start
                weight[index] = (old.layer(eye, *of_task) - start).mT
        # The norms keep their weights, and a bottleneck beside a layer the note of its input.
        new.pre_norm, new.post_norm = old.pre_norm, old.post_norm
        new.beside = old.beside
        host.extend_linear(linear, new.train(old.training))
    return adapter


def init_linear(weight: Tensor, bias: Tensor, std: float | None) -> None:
    """Draw stacked linear layers (tasks, out, in): N(0, std) and zero bias, or PyTorch's default
    for both."""
    if std is None:
        # nn.Linear's default, whose kaiming_uniform_(a=sqrt(5)) comes to 1 / sqrt(in).
        bound = 1 / math.sqrt(weight.shape[-1])
        nn.init.uniform_(weight, -bound, bound)
        nn.init.uniform_(bias, -bound, bound)
    else:
        nn.init.normal_(weight, std=std)
        nn.init.zeros_(bias)
