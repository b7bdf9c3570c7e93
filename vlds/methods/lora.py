"""LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685), as VL-Adapter trains it
(https://arxiv.org/abs/2112.06825): beside the query and value projections of every attention

    y = W x + b + (alpha / rank) B A dropout(x),    A: rank x in,  B: out x rank,

with the backbone's biases trained too. The tasks' weights are stacked in one parameter (tasks or 1,
...).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlds.methods.base import (
    CROSS_ATTENTION,
    LinearExtension,
    Method,
    Sharing,
    bias_parameters,
    check_sharing,
    extend_linear,
    extended_linears,
    find_linears,
    foldable_weight,
    take_first,
    weight_options,
)
from vlds.methods.routing import TaskRouting
from vlds.schema import STACKED, OptimizerRules, Role, TargetModules


@dataclass(frozen=True, kw_only=True)
class LoRA(Method):
    """Updates of low rank beside linear layers."""

    sharing: Sharing = "single"
    """Which weights the tasks have in common: all, none, B (half_shared_up) or A
    (half_shared_down)."""
    rank: int = 128
    """Rank of the updates."""
    alpha: float = 32.0
    """The update is scaled by alpha / rank."""
    dropout: float = 0.1
    """Dropout of the update's input."""
    roles: list[Role] = field(
        default_factory=lambda: ["attn_q", "attn_v", "cross_attn_q", "cross_attn_v"]
    )
    """Which layers have updates."""
    train_biases: bool = True
    """Train the backbone's biases too, as the original code does (on T5, the relative position
    biases)."""

    def __post_init__(self) -> None:
        check_sharing(self.part, self.sharing)
        if self.rank < 1:
            raise ValueError(f"rank: got {self.rank}; give at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: got {self.dropout}; give at least 0 and less than 1")
        if not self.roles:
            raise ValueError("roles: none are named; name at least one, like attn_q")

    def attach(
        self,
        name: str,
        model: nn.Module,
        targets: TargetModules,
        tasks: Sequence[str],
        routing: TaskRouting,
    ) -> list[nn.Parameter]:
        """Put an update beside every layer of the roles.

        Cross-attention is passed over where the model has none, unless it is all that is asked for.
        """
        optional = CROSS_ATTENTION if set(self.roles) - set(CROSS_ATTENTION) else ()
        trained: list[nn.Parameter] = []
        for path, linear in find_linears(model, targets, *self.roles, optional=optional).items():
            module = LoRAModule(self, linear, len(tasks), routing)
            extend_linear(model, path, name, module)
            trained += module.parameters()
        return trained + (bias_parameters(model) if self.train_biases else [])

    @torch.no_grad()
    def merge(self, name: str, model: nn.Module, tasks: Sequence[str]) -> None:
        """Add the updates to the weights.

        Errors: ValueError where tasks have updates of their own, or a layer is quantised.
        """
        if self.sharing != "single":
            raise ValueError(
                f"sharing: {self.sharing}; one layer cannot hold the updates of several tasks"
            )
        for linear in extended_linears(model, name):
            weight = foldable_weight(linear)
            module = take_first(linear, name)
            assert isinstance(module, LoRAModule)
            change = module.scale * module.b[0].float() @ module.a[0].float()
            weight += change.to(weight.dtype)


class LoRAModule(LinearExtension):
    """The updates of all tasks beside one layer."""

    optimizer_rules: ClassVar[OptimizerRules] = {"a": STACKED, "b": STACKED}

    def __init__(
        self, config: LoRA, linear: nn.Linear, num_tasks: int, routing: TaskRouting
    ) -> None:
        super().__init__()
        self.routing, self.dropout = routing, config.dropout
        self.scale = config.alpha / config.rank
        num_a = 1 if config.sharing in ("single", "half_shared_down") else num_tasks
        num_b = 1 if config.sharing in ("single", "half_shared_up") else num_tasks
        options = weight_options(linear)
        self.a = nn.Parameter(torch.empty(num_a, config.rank, linear.in_features, **options))
        self.b = nn.Parameter(torch.zeros(num_b, linear.out_features, config.rank, **options))
        bound = 1 / math.sqrt(linear.in_features)
        nn.init.uniform_(self.a, -bound, bound)

    def forward(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """(b, l, in) and (b, l, out) -> (b, l, out): each row with its task's update."""
        a, b = self.a.unbind(), self.b.unbind()

        def update(rows: Tensor, task: int) -> Tensor:
            hidden = F.linear(rows, a[task if len(a) > 1 else 0])
            return F.linear(hidden, b[task if len(b) > 1 else 0])

        inputs = F.dropout(inputs, self.dropout, self.training)
        shared = len(a) == len(b) == 1
        change = update(inputs, 0) if shared else self.routing.apply(update, inputs)
        return outputs + self.scale * change
