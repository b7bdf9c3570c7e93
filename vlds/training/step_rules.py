"""Runs methods' rules (vlds/methods/step_rule.py) in an engine's optimizer steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vlds.methods.step_rule import StepRule


class StepRules:
    """All rules of a model. Every method is collective; without rules, none does anything."""

    def __init__(self, rules: nn.ModuleDict, num_steps: int) -> None:
        self.rules = [rule for rule in rules.values() if isinstance(rule, StepRule)]
        assert num_steps > 0 or not self.rules, "rules of methods need the run's length"
        self.num_steps = num_steps
        self._gradients: dict[nn.Parameter, Tensor] = {}

    def added_loss(self, share: float) -> Tensor | float:
        """This share of what the rules add to the loss of a global batch."""
        penalties = [p for rule in self.rules if (p := rule.penalty()) is not None]
        return share * torch.stack(penalties).sum() if penalties else 0.0

    def read_gradients(self, step: int, read: Callable[[nn.Parameter], Tensor]) -> None:
        """Keep what the rules need of the gradients, which `read` averages over ranks: between the
        last backward pass of a step and the optimizer, in which ZeRO frees them."""
        self._gradients = {
            parameter: read(parameter)
            for rule in self.rules
            for parameter in rule.needs_gradients(step, self.num_steps)
        }

    def after_step(
        self, step: int, skipped: bool, set_zero: Callable[[nn.Parameter, Tensor], None]
    ) -> None:
        """Let each rule act. `set_zero` sets a weight to zero where a mask is true."""
        for rule in self.rules:
            gradients = None if skipped else self._gradients
            for parameter, mask in rule.after_step(step, self.num_steps, gradients).items():
                set_zero(parameter, mask)
        self._gradients = {}


def buffer_bytes(rules: nn.Module) -> int:
    """Bytes of the rules' state."""
    return sum(buffer.nbytes for buffer in rules.buffers())
