"""The skeleton that all bottleneck adapters have in common: behind each attention and feed-forward
sub-layer

    A(x) = x + [norm]( up( g( down( [norm](x) ) ) ) ),    g = GELU, tanh approximation

acting on the sub-layer's output before dropout and residual (Houlsby et al. 2019,
https://arxiv.org/abs/1902.00751, as in VL-Adapter, Sung et al. 2022,
https://arxiv.org/abs/2112.06825). What `down` and `up` are is the methods' affair. One pair for all
tasks (`single`), one per task (`multiple`), or one per task whose up or down half, bias included,
is common to all (`half_shared_up`, `half_shared_down`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from vlds.methods.base import LinearExtension, Method, Sharing, extend_linear, find_linears
from vlds.methods.routing import TaskRouting
from vlds.schema import TargetModules

Half = Callable[[Tensor], Tensor]
"""One half of a bottleneck for one task: (..., in) -> (..., out)."""


@dataclass(frozen=True, kw_only=True)
class Bottleneck(Method):
    """What bottleneck adapters have in common."""

    sharing: Sharing = "single"
    """Which weights the tasks have in common: all, none, the up halves, or the down halves."""
    reduction: int = 8
    """Width of the model divided by the width of the bottleneck."""
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
        """Put a bottleneck behind every output projection."""
        make = self.maker(model, targets, tasks, routing)
        roles = ["attn_out", "ffn_out"]
        if self.cross_attention and "cross_attn_out" in targets.paths:
            roles.append("cross_attn_out")
        trained: list[nn.Parameter] = []
        for path in [path for role in roles for path in find_linears(model, targets, role)]:
            linear = model.get_submodule(path)
            assert isinstance(linear, nn.Linear)
            module = make(linear)
            extend_linear(model, path, name, module)
            trained += module.parameters()
        return trained

    @abstractmethod
    def maker(
        self,
        model: nn.Module,
        targets: TargetModules,
        tasks: Sequence[str],
        routing: TaskRouting,
    ) -> Callable[[nn.Linear], BottleneckModule]:
        """What makes the module behind a linear layer."""


class BottleneckModule(LinearExtension):
    """The bottlenecks of all tasks behind one layer.

    Subclasses own all their weights themselves: ZeRO-3 gathers them once when this module runs, how
    many tasks a rank may hold.
    """

    def __init__(
        self, config: Bottleneck, linear: nn.Linear, num_tasks: int, routing: TaskRouting
    ) -> None:
        super().__init__()
        self.width = linear.out_features
        self.bottleneck = self.width // config.reduction
        if self.bottleneck < 1:
            raise ValueError(
                f"reduction: {config.reduction} leaves nothing of a layer {self.width} wide; give "
                f"at most {self.width}"
            )
        self.routing = routing
        self.num_down = 1 if config.sharing in ("single", "half_shared_down") else num_tasks
        self.num_up = 1 if config.sharing in ("single", "half_shared_up") else num_tasks
        self.options: dict[str, Any] = {
            "device": linear.weight.device,
            "dtype": linear.weight.dtype,
        }
        before, after = config.layer_norm_before, config.layer_norm_after
        self.pre_norm = nn.LayerNorm(self.width, **self.options) if before else None
        self.post_norm = nn.LayerNorm(self.width, **self.options) if after else None

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
