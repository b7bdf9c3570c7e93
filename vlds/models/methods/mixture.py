"""AdaMix (Wang et al. 2022, https://arxiv.org/abs/2205.12410): several experts, of which each
layer takes one at random in each pass. With two passes over each batch, the loss is

    CE(p) + weight * 1/2 [ KL(p || q) + KL(q || p) ],

where p and q are what the passes predict; CE is that of the first pass. The trained experts are
averaged, weight by weight, so that what is left has the size and the cost of one.

As in the original code: down and up halves draw separately, and the distribution in front of a KL's
logarithm is a constant. Ours: tokens of padding count in neither term, and LoRA's experts begin
with unlike A.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlds.models.methods.adapter import Adapter
from vlds.models.methods.base import Method
from vlds.models.methods.context import BatchContext, BatchLoss, Predicted, TaskRouting
from vlds.models.methods.host import Host, extended_linears
from vlds.models.methods.lora import LoRA
from vlds.runtime.checks import Limits, NotNegative


def of_ffn() -> Adapter:
    """Adapters behind feed-forward layers, with one up half: what the original code mixes."""
    return Adapter(sharing="half_shared_up", attention=False, cross_attention=False)


@dataclass(frozen=True, kw_only=True)
class Mixture(Method):
    """Adapters or LoRA of several experts, shared by all tasks."""

    of: Method = field(default_factory=of_ffn)
    """Adapter or LoRA. Its `sharing` says what the experts have in common: nothing (`multiple`),
    the up halves (B), or the down halves (A)."""
    experts: Annotated[int, Limits(2, 10_000)] = 4
    """Number of experts."""
    consistency: NotNegative = 1.0
    """Weight of the passes' distance; 0: one pass, without it."""

    def __post_init__(self) -> None:
        if not isinstance(self.of, (Adapter, LoRA)):
            raise ValueError(f"of: got {type(self.of).__name__}; choose Adapter or LoRA")
        if self.of.sharing == "single":
            raise ValueError(
                "of.sharing: got single, so that the experts would be one; choose half_shared_up, "
                "half_shared_down or multiple"
            )
        if self.of.part != "backbone" or self.of.learning_rate is not None:
            raise ValueError("of: set part and learning_rate at Mixture itself")

    def attach(self, host: Host) -> list[nn.Parameter]:
        """Attach the experts as if they were tasks, and let each layer choose among them."""
        trained = self.of.attach(replace(host, tasks=[str(n) for n in range(self.experts)]))
        # The layer's number is part of the draw's key, so that layers choose independently.
        for number, linear in enumerate(extended_linears(host.model, host.name)):
            module: Any = linear.extensions[host.name]
            module.routing = ExpertRouting(host.context, f"{host.name}/{number}")
            # Slices are experts, not tasks: one that no pass draws moves on by its momentum.
            module.optimizer_rules = {
                name: replace(rule, per_task=False) for name, rule in module.optimizer_rules.items()
            }
        if self.consistency > 0:
            host.batch_losses.append(Consistency(self.consistency))
        return trained

    @torch.no_grad()
    def merge(self, name: str, model: nn.Module, tasks: Sequence[str]) -> Mapping[str, Method]:
        """One Adapter or LoRA with the mean of the experts' weights."""
        for linear in extended_linears(model, name):
            module: Any = linear.extensions[name]
            # What `attach` has put on the object goes: the class's rules and the batch's tasks.
            module.routing, kind = module.routing.context.routing, type(module)
            module.optimizer_rules = kind.optimizer_rules
            for leaf, weight in list(module.named_parameters(recurse=False)):
                setattr(module, leaf, nn.Parameter(weight.mean(0, keepdim=True)))
        assert isinstance(self.of, (Adapter, LoRA))
        one = replace(self.of, sharing="single", part=self.part, learning_rate=self.learning_rate)
        return {name: one}


class ExpertRouting(TaskRouting):
    """Lets a layer take one expert for all rows of a pass in training, else their mean."""

    def __init__(self, context: BatchContext, key: str) -> None:
        super().__init__()
        self.context, self.key = context, key

    def apply_stacked(
        self, function: Callable[..., Tensor], states: Tensor, *halves: Sequence[Tensor]
    ) -> Tensor:
        taken: list[Tensor] = []
        for number, half in enumerate(halves):
            for stack in half:
                if len(stack) == 1:
                    taken.append(stack)
                elif self.context.training:
                    # One key for a half, so that its weight and bias are those of one expert.
                    expert = self.context.draw(f"{self.key}/{number}", len(stack))
                    taken.append(stack[expert : expert + 1])
                else:
                    taken.append(stack.mean(0, keepdim=True))
        return function(states, *taken)


class Consistency(BatchLoss):
    """Distance of two passes' predictions."""

    passes: ClassVar[int] = 2

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def of_examples(self, passes: Sequence[Predicted]) -> Tensor:
        # Logits of labels alone: tokens of padding are not among them.
        first, second = passes
        distances = symmetric_kl(first.logits, second.logits)
        of_classes = [
            symmetric_kl(one.distributions(), other.distributions()).sum(1)
            for one, other in zip(first.classes, second.classes, strict=True)
        ]
        return self.weight * first.by_example(distances, of_classes).sum(1)


def symmetric_kl(first: Tensor, second: Tensor) -> Tensor:
    """(..., w) logits of two passes -> (...) 1/2 [KL(p || q) + KL(q || p)], in at least float32."""
    precise = torch.promote_types(first.dtype, torch.float32)
    p, q = (F.log_softmax(logits, -1, dtype=precise) for logits in (first, second))
    # As in the original code, the distribution in front of a logarithm has no gradient.
    there = F.kl_div(q, p.detach(), reduction="none", log_target=True)
    back = F.kl_div(p, q.detach(), reduction="none", log_target=True)
    return (there + back).sum(-1) / 2
