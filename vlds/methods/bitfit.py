"""BitFit (Ben Zaken et al. 2022, https://arxiv.org/abs/2106.10199): the biases alone train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vlds.methods.base import (
    LinearExtension,
    Method,
    bias_parameters,
    extend_linear,
    extended_linears,
    find_linears,
)
from vlds.methods.routing import TaskRouting
from vlds.schema import UNDECAYED, OptimizerRules, Role, TargetModules

LINEAR_ROLES: tuple[Role, ...] = (
    "attn_q", "attn_k", "attn_v", "attn_out",
    "cross_attn_q", "cross_attn_k", "cross_attn_v", "cross_attn_out",
    "ffn_in", "ffn_out",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class BitFit(Method):
    """Train the biases of linear layers and norms."""

    add_biases: bool = False
    """Give linear layers without a bias one, at first 0 (all of T5's are without)."""

    def attach(
        self,
        name: str,
        model: nn.Module,
        targets: TargetModules,
        tasks: Sequence[str],
        routing: TaskRouting,
    ) -> list[nn.Parameter]:
        """The biases that are there, and new ones where asked for.

        Errors: ValueError where linear layers have no bias and `add_biases` is false.
        """
        roles = [role for role in LINEAR_ROLES if role in targets.paths]
        linears = find_linears(model, targets, *roles)
        bare = {path: linear for path, linear in linears.items() if linear.bias is None}
        if bare and not self.add_biases:
            raise ValueError(
                f"{len(bare)} linear layers of {type(model).__name__} have no bias (the first: "
                f"{next(iter(bare))}); set add_biases to true to give them one, or choose another "
                "method"
            )
        trained: list[nn.Parameter] = []
        for path, linear in bare.items():
            module = AddedBias(linear)
            extend_linear(model, path, name, module)
            trained += module.parameters()
        return trained + bias_parameters(model)

    def merge(self, name: str, model: nn.Module, tasks: Sequence[str]) -> None:
        """Nothing to do: the biases are already the model's own.

        Errors: ValueError where some were added, which the model's class has no room for.
        """
        if next(extended_linears(model, name), None) is not None:
            raise ValueError(
                f"add_biases: the linear layers of {type(model).__name__} have none in their own "
                "class; use `vlds convert hf`, which keeps them beside the backbone"
            )


class AddedBias(LinearExtension):
    """The bias of a layer that has none."""

    optimizer_rules: ClassVar[OptimizerRules] = {"bias": UNDECAYED}

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight
        zeros = torch.zeros(linear.out_features, device=weight.device, dtype=weight.dtype)
        self.bias = nn.Parameter(zeros)

    def forward(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """(b, l, out) -> (b, l, out)."""
        return outputs + self.bias
