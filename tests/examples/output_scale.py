"""An example method: a factor per channel behind some layers, y = s * W(x), starting at s = 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vlds.models.methods.base import Method
from vlds.models.methods.host import Host, LinearExtension, weight_options
from vlds.schema import UNDECAYED, OptimizerRules, Role


@dataclass(frozen=True, kw_only=True)
class OutputScale(Method):
    """Learned factors behind linear layers."""

    role: Role = "ffn_out"
    """Which layers are scaled."""

    def attach(self, host: Host) -> list[nn.Parameter]:
        """Put factors behind every layer of the role."""
        trained: list[nn.Parameter] = []
        for linear in host.linears(self.role).values():
            scale = Scale(linear)
            host.extend_linear(linear, scale)
            trained += scale.parameters()
        return trained


class Scale(LinearExtension):
    """The factors behind one layer."""

    optimizer_rules: ClassVar[OptimizerRules] = {"factor": UNDECAYED}

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(linear.out_features, **weight_options(linear)))

    def forward(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """(b, l, d) -> (b, l, d)."""
        return outputs * self.factor
