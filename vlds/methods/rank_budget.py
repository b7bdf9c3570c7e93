"""AdaLoRA's budget (Zhang et al. 2023, https://arxiv.org/abs/2303.10512), shared out by peft.

A layer's update is B diag(E) A. Each step scores the triplets (a column of B, an entry of E, a row
of A) of all layers by |weight x gradient|, smoothed over steps, and sets the entries of the worst
to zero. How many may stay falls from `init_r` to `target_r` a layer, cubically, between step
`tinit` and step `tfinal` before the last; then they are fixed. An entry may come back before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlds.methods.peft_layers import ADAPTER, PeftExtension, rank_allocator
from vlds.methods.step_rule import StepRule

FACTORS = ("lora_A", "lora_B", "lora_E")
"""peft's names of A (r, in), B (out, r) and E (r, 1)."""


class RankBudget(StepRule):
    """The budget of all layers of a method."""

    def __init__(self, config: Any, extensions: Sequence[PeftExtension]) -> None:
        """`config`: peft's AdaLoraConfig."""
        super().__init__()
        self.config = config
        self.held: dict[str, nn.Parameter] = {
            f"{number}.{factor}.{ADAPTER}": getattr(extension.tuner, factor)[ADAPTER]
            for number, extension in enumerate(extensions)
            for factor in FACTORS
        }
        """The layers' factors, by names in which peft finds its own."""
        for place, (name, parameter) in enumerate(self.held.items()):
            for kind in ("sensitivity", "uncertainty"):
                zeros = torch.zeros(parameter.shape, device=parameter.device)
                self.register_buffer(f"{kind}_{place}", zeros, persistent=False)
            if "lora_E" in name:
                dropped = torch.zeros(parameter.shape, device=parameter.device, dtype=torch.bool)
                self.register_buffer(f"dropped_{place}", dropped, persistent=False)

    def penalty(self) -> Tensor:
        """How far rows of A and columns of B are from orthonormal, on average over matrices."""
        distances = []
        for name, parameter in self.held.items():
            if "lora_E" not in name:
                matrix = parameter.float()
                rows = matrix if "lora_A" in name else matrix.T
                unit = torch.eye(len(rows), device=rows.device)
                distances.append(torch.linalg.matrix_norm(rows @ rows.T - unit))
        mean: Tensor = self.config.orth_reg_weight * torch.stack(distances).mean()
        return mean

    def needs_gradients(self, step: int, num_steps: int) -> Sequence[nn.Parameter]:
        """Those of all factors, until the budget is fixed."""
        return list(self.held.values()) if step < num_steps - self.config.tfinal else ()

    @torch.no_grad()
    def after_step(
        self, step: int, num_steps: int, gradients: Mapping[nn.Parameter, Tensor] | None
    ) -> Mapping[nn.Parameter, Tensor]:
        """Score the triplets and share out the budget, as peft's `update_and_allocate` does."""
        fixed = num_steps - self.config.tfinal
        if step > fixed and self.is_reached():  # not yet if a resumed run has fewer steps
            return self.dropped()
        weights = Weights(self.held, gradients)
        allocator = self.allocator(weights, num_steps)
        if gradients is not None and step < fixed:
            allocator.update_ipt(weights)
            for place, name in enumerate(self.held):
                self.get_buffer(f"sensitivity_{place}").copy_(allocator.exp_avg_ipt[name])
                self.get_buffer(f"uncertainty_{place}").copy_(allocator.exp_avg_unc[name])
        budget, is_due = allocator.budget_schedule(step)
        if not is_due and step < fixed:
            return {}
        kept = allocator.mask_to_budget(weights, budget)
        for place, name in enumerate(self.held):
            if name in kept:
                dropped = self.get_buffer(f"dropped_{place}")
                dropped.copy_(~torch.tensor(kept[name])[:, None])
        return self.dropped()

    def allocator(self, weights: Weights, num_steps: int) -> Any:
        """peft's, which continues from the buffers."""
        self.config.total_step = num_steps
        allocator = rank_allocator(weights, self.config)
        for place, name in enumerate(self.held):
            allocator.ipt[name] = None  # known, so that peft does not begin its averages
            allocator.exp_avg_ipt[name] = self.get_buffer(f"sensitivity_{place}")
            allocator.exp_avg_unc[name] = self.get_buffer(f"uncertainty_{place}")
        return allocator

    def is_reached(self) -> bool:
        """True if no more entries are left than the last budget has."""
        dropped = self.dropped().values()
        most: int = self.config.target_r * len(dropped)
        return sum(int((~mask).sum()) for mask in dropped) <= most

    def dropped(self) -> dict[nn.Parameter, Tensor]:
        """Each layer's E -> True for entries that are out of the budget."""
        return {
            parameter: self.get_buffer(f"dropped_{place}")
            for place, (name, parameter) in enumerate(self.held.items())
            if "lora_E" in name
        }


class Weights:
    """Copies of weights in fp32 with their gradients, as peft's allocator reads a model."""

    def __init__(
        self, held: Mapping[str, nn.Parameter], gradients: Mapping[nn.Parameter, Tensor] | None
    ) -> None:
        self.copies: dict[str, Tensor] = {}
        for name, parameter in held.items():
            self.copies[name] = parameter.detach().float().clone()
            if gradients is not None and parameter in gradients:
                self.copies[name].grad = gradients[parameter]

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """The copies."""
        yield from self.copies.items()
