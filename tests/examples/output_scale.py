"""An example method: a factor per channel behind some layers, y = s * W(x), starting at s = 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vlds.methods.base import (
    LinearExtension,
    Method,
    extend_linear,
    find_linears,
    weight_options,
)
from vlds.methods.routing import TaskRouting
from vlds.schema import UNDECAYED, OptimizerRules, Role, TargetModules


@dataclass(frozen=True, kw_only=True)
class OutputScale(Method):
    """Learned factors behind linear layers."""

    role: Role = "ffn_out"
    """Which layers are scaled."""

    def attach(
        self,
        name: str,
        model: nn.Module,
        targets: TargetModules,
        tasks: Sequence[str],
        routing: TaskRouting,
    ) -> list[nn.Parameter]:
        """Put factors behind every layer of the role."""
        trained: list[nn.Parameter] = []
        for path, linear in find_linears(model, targets, self.role).items():
            scale = Scale(linear)
            extend_linear(model, path, name, scale)
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
