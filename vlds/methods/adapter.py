"""Bottleneck adapters (Houlsby et al. 2019, https://arxiv.org/abs/1902.00751) as in VL-Adapter
(Sung et al. 2022, https://arxiv.org/abs/2112.06825): after each attention and feed-forward
sub-layer

    A(x) = x + [norm]( W_up g( W_down [norm](x) + b_down ) + b_up ),    g = GELU, tanh approximation

acting on the sub-layer's output before dropout and residual. One adapter for all tasks (`single`),
one per task (`multiple`), or one per task whose up or down half, bias included, is common to all
(`half_shared_up`, `half_shared_down`). The tasks' weights are stacked in one parameter (tasks or 1,
...).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlds.methods.base import LinearExtension, Method, Sharing, extend_linear, find_linears
from vlds.methods.routing import TaskRouting
from vlds.schema import TargetModules


@dataclass(frozen=True, kw_only=True)
class Adapter(Method):
    """Bottlenecks behind attention and feed-forward layers."""

    sharing: Sharing = "single"
    """Which weights the tasks have in common: all, none, the up halves, or the down halves."""
    reduction: int = 8
    """Width of the model divided by the width of the bottleneck."""
    init: Literal["vl_adapter", "identity"] = "vl_adapter"
    """vl_adapter: as the original code, N(0, 0.02) on BART, PyTorch's default on T5. identity: W_up
    and b_up are 0."""
    layer_norm_before: bool = False
    """A layer norm before the bottleneck, common to all tasks."""
    layer_norm_after: bool = False
    """A layer norm after it, before the adapter's own residual, common to all tasks."""
    cross_attention: bool = True
    """Adapters behind cross-attention too."""

    def __post_init__(self) -> None:
        if self.reduction < 1:
            raise ValueError(f"reduction: got {self.reduction}; give at least 1")
        if self.part == "vision" and self.sharing != "single":
            raise ValueError(
                f"sharing: got {self.sharing} for the vision encoder, where tasks share pictures; "
                "use single"
            )

    def attach(
        self,
        name: str,
        model: nn.Module,
        targets: TargetModules,
        tasks: Sequence[str],
        routing: TaskRouting,
    ) -> list[nn.Parameter]:
        """Put an adapter behind every output projection."""
        roles = ["attn_out", "ffn_out"]
        if self.cross_attention and "cross_attn_out" in targets.paths:
            roles.append("cross_attn_out")
        trained: list[nn.Parameter] = []
        for path in [path for role in roles for path in find_linears(model, targets, role)]:
            linear = model.get_submodule(path)
            assert isinstance(linear, nn.Linear)
            module = AdapterModule(self, linear, len(tasks), routing, targets.linear_init_std)
            extend_linear(model, path, name, module)
            trained += module.parameters()
        return trained


class AdapterModule(LinearExtension):
    """The adapters of all tasks behind one layer."""

    def __init__(
        self,
        config: Adapter,
        linear: nn.Linear,
        num_tasks: int,
        routing: TaskRouting,
        init_std: float | None,
    ) -> None:
        super().__init__()
        width = linear.out_features
        bottleneck = width // config.reduction
        if bottleneck < 1:
            raise ValueError(
                f"reduction: {config.reduction} leaves nothing of a layer {width} wide; give at "
                f"most {width}"
            )
        self.routing = routing
        num_down = 1 if config.sharing in ("single", "half_shared_down") else num_tasks
        num_up = 1 if config.sharing in ("single", "half_shared_up") else num_tasks
        options: dict[str, Any] = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        self.down_weight = nn.Parameter(torch.empty(num_down, bottleneck, width, **options))
        self.down_bias = nn.Parameter(torch.empty(num_down, bottleneck, **options))
        self.up_weight = nn.Parameter(torch.empty(num_up, width, bottleneck, **options))
        self.up_bias = nn.Parameter(torch.empty(num_up, width, **options))
        self.pre_norm = nn.LayerNorm(width, **options) if config.layer_norm_before else None
        self.post_norm = nn.LayerNorm(width, **options) if config.layer_norm_after else None
        init_linear(self.down_weight, self.down_bias, init_std)
        init_linear(self.up_weight, self.up_bias, init_std)
        if config.init == "identity":
            nn.init.zeros_(self.up_weight)
            nn.init.zeros_(self.up_bias)

    def forward(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """(b, l, d) -> (b, l, d): each row through its task's adapter."""
        states = outputs if self.pre_norm is None else self.pre_norm(outputs)
        down = list(zip(self.down_weight.unbind(), self.down_bias.unbind(), strict=True))
        up = list(zip(self.up_weight.unbind(), self.up_bias.unbind(), strict=True))

        def bottleneck(rows: Tensor, task: int) -> Tensor:
            hidden = F.linear(rows, *down[task if len(down) > 1 else 0])
            hidden = F.gelu(hidden, approximate="tanh")
            return F.linear(hidden, *up[task if len(up) > 1 else 0])

        shared = len(down) == len(up) == 1
        states = bottleneck(states, 0) if shared else self.routing.apply(bottleneck, states)
        if self.post_norm is not None:
            states = self.post_norm(states)
        return outputs + states


def init_linear(weight: Tensor, bias: Tensor, std: float | None) -> None:
    """Draw stacked linear layers (tasks, out, in): N(0, std) and zero bias, or PyTorch's default
    for both."""
    if std is None:
        bound = 1 / math.sqrt(weight.shape[-1])
        nn.init.uniform_(weight, -bound, bound)
        nn.init.uniform_(bias, -bound, bound)
    else:
        nn.init.normal_(weight, std=std)
        nn.init.zeros_(bias)
