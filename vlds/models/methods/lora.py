"""LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685), as VL-Adapter trains it
(https://arxiv.org/abs/2112.06825): beside the query and value projections of every attention

    y = W x + b + (alpha / rank) B A dropout(x),    A: rank x in,  B: out x rank,

with the backbone's biases trained too. The tasks' weights are stacked in one parameter (tasks or 1,
...).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vlds.models.methods.base import (
    PEFT_MODEL,
    Layout,
    Library,
    Method,
    Sharing,
    Stored,
    check_sharing,
    is_t5,
    num_slices,
)
from vlds.models.methods.context import stacked_linear
from vlds.models.methods.host import (
    CROSS_ATTENTION,
    Host,
    LinearExtension,
    added_tensors,
    bias_parameters,
    extended_linears,
    foldable_weight,
    take_first,
    weight_options,
)
from vlds.runtime.checks import Count, Positive, ShareBelow1
from vlds.schema import STACKED, OptimizerRules, Role

ORIGINAL_ROLES: tuple[Role, ...] = ("attn_q", "attn_v", "cross_attn_q", "cross_attn_v")
"""Layers that have LoRA in the original code."""


@dataclass(frozen=True, kw_only=True)
class LoRA(Method):
    """Updates of low rank beside linear layers."""

    libraries: ClassVar[frozenset[Library]] = frozenset({"peft", "reference"})
    reasons: ClassVar[Mapping[Library, str]] = {"adapters": "LoRA has `vlds convert peft`"}

    sharing: Sharing = "single"
    """Weights that the tasks have in common: all, none, B (half_shared_up) or A
    (half_shared_down)."""
    rank: Count = 128
    """Rank of the updates."""
    alpha: Positive = 32.0
    """The update is scaled by alpha / rank."""
    dropout: ShareBelow1 = 0.1
    """Dropout of the update's input."""
    roles: list[Role] = field(default_factory=lambda: list(ORIGINAL_ROLES))
    """Layers that have updates."""
    train_biases: bool = True
    """Train the backbone's biases too, as the original code does (on T5, the relative position
    biases)."""

    def __post_init__(self) -> None:
        check_sharing(self.part, self.sharing)
        if not self.roles:
            raise ValueError("roles: none are named; name at least one, like attn_q")

    def attach(self, host: Host) -> list[nn.Parameter]:
        """Put an update beside every layer of the roles.

        A model may lack cross-attention unless `roles` names nothing else.
        """
        # Models of one stack have none; only a recipe that names nothing else must fail on them.
        optional = CROSS_ATTENTION if set(self.roles) - set(CROSS_ATTENTION) else ()
        trained: list[nn.Parameter] = []
        for linear in host.linears(*self.roles, optional=optional).values():
            module = LoRAModule(self, linear, host)
            host.extend_linear(linear, module)
            trained += module.parameters()
        return trained + (bias_parameters(host.model) if self.train_biases else [])

    @torch.no_grad()
    def merge(self, name: str, model: nn.Module, tasks: Sequence[str]) -> Mapping[str, Method]:
        """Add the updates to the weights.

        Errors: ValueError if each task has its own updates, or a layer is quantised.
        """
        if self.sharing != "single":
            raise ValueError(
                f"sharing: {self.sharing}; one layer cannot hold the updates of several tasks"
            )
        for linear in extended_linears(model, name):
            # Checked before the module is taken out.
            weight = foldable_weight(linear)
            module = take_first(linear, name)
            assert isinstance(module, LoRAModule)
            # In float32, so that a bf16 weight is rounded once.
            change = module.scale * module.b[0].float() @ module.a[0].float()
            weight += change.to(weight.dtype)
        return {}

    def refusal(self, library: Library, model: Any) -> str | None:
        if library == "reference" and is_t5(model):
            return "the original code has no LoRA on T5"
        if library == "reference" and set(self.roles) != set(ORIGINAL_ROLES):
            return f"the original code has LoRA at {', '.join(ORIGINAL_ROLES)} and nowhere else"
        return super().refusal(library, model)

    def layout(self, library: Library, name: str, model: Any) -> Layout:
        added = added_tensors(model, name)
        if library == "reference":
            keys = {t.name: f"{t.layer}.lora_{t.leaf.upper()}s.{{task}}" for t in added}
            return Layout({tensor: Stored((key,)) for tensor, key in keys.items()})
        keys = {t.name: f"{PEFT_MODEL}{t.layer}.lora_{t.leaf.upper()}.weight" for t in added}
        config = {
            "peft_type": "LORA",
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "target_modules": list(dict.fromkeys(tensor.layer for tensor in added)),
        }
        return Layout({tensor: Stored((key,)) for tensor, key in keys.items()}, config)


class LoRAModule(LinearExtension):
    """The updates of all tasks beside one layer."""

    optimizer_rules: ClassVar[OptimizerRules] = {"a": STACKED, "b": STACKED}
    neurons: ClassVar[Mapping[str, int]] = {"a": 1, "b": 2}
    """Weight -> its dimension that numbers the update's ranks."""
    behind_zeros = ("a",)  # B begins as zeros

    def __init__(self, config: LoRA, linear: nn.Linear, host: Host) -> None:
        super().__init__()
        self.routing, self.dropout = host.context.routing, config.dropout
        self.scale = config.alpha / config.rank
        num_a, num_b = num_slices(config.sharing, len(host.tasks))
        options = weight_options(linear)
        self.a = nn.Parameter(torch.empty(num_a, config.rank, linear.in_features, **options))
        self.b = nn.Parameter(torch.zeros(num_b, linear.out_features, config.rank, **options))
        # As loralib draws A: kaiming_uniform_(a=sqrt(5)), which comes to 1 / sqrt(in).
        bound = 1 / math.sqrt(linear.in_features)
        nn.init.uniform_(self.a, -bound, bound)

    def forward(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """(b, l, in) and (b, l, out) -> (b, l, out): each row with its task's update."""
        inputs = F.dropout(inputs, self.dropout, self.training)
        if len(self.a) == len(self.b) == 1:  # all rows have one update
            rows, flat = (states.flatten(0, -2) for states in (inputs, outputs))
            a, b = self.a.squeeze(0), self.b.squeeze(0)
            updated: Tensor = Updated.apply(flat, rows, a, b, self.scale)  # type: ignore[no-untyped-call]
            return updated.view(outputs.shape)

        def update(rows: Tensor, a: Tensor, b: Tensor) -> Tensor:
            # Scaled where the states are narrowest.
            return stacked_linear(self.scale * stacked_linear(rows, a), b)

        return outputs + self.routing.apply_stacked(update, inputs, [self.a], [self.b])


class Updated(torch.autograd.Function):
    """States (n, out) with the update scale * B A x of inputs (n, in), from A (r, in) and B (out,
    r). The scale and the sum are part of the products, where a GPU would start a kernel for each.
    """

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, inputs: Tensor, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        narrow = inputs @ a.mT
        ctx.save_for_backward(inputs, narrow, a, b)
        ctx.scale = scale
        return torch.addmm(states, narrow, b.mT, alpha=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, narrow, a, b = ctx.saved_tensors
        nothing = gradient.new_empty(())  # beta=0 ignores it
        of_narrow = torch.addmm(nothing, gradient, b, beta=0, alpha=ctx.scale)
        of_b = torch.addmm(nothing, gradient.mT, narrow, beta=0, alpha=ctx.scale)
        of_inputs = of_narrow @ a if ctx.needs_input_grad[1] else None
        return gradient, of_inputs, of_narrow.mT @ inputs, of_b, None
