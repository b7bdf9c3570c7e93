"""Checks that what should train does: which trainable tensors the first steps' gradients reach.

A method whose module is never run, or runs behind something that cuts the gradient, trains nothing
without an error. So a run checks its first steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from vlds.methods.extended import zero_at_first
from vlds.runtime.ranks import Ranks

WATCHED_STEPS = 20
"""Steps after which tensors without any gradient are reported."""


class GradientWatch:
    """Counts, for each trainable tensor, whether gradients came and whether one was not zero. All
    ranks have one."""

    def __init__(self, model: nn.Module, trained_by: Mapping[str, str], ranks: Ranks) -> None:
        self.ranks, self.trained_by = ranks, trained_by
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.names = [name for name, _ in trained]
        self._zero_at_first = zero_at_first(model)
        self._reached = torch.zeros(len(self.names), dtype=torch.float64)
        self._moved = torch.zeros(len(self.names), device=ranks.device)
        self._steps = 0
        self._hooks = [
            parameter.register_hook(self._note(number))
            for number, (_, parameter) in enumerate(trained)
        ]

    def _note(self, number: int) -> Callable[[Tensor], None]:
        def note(gradient: Tensor) -> None:
            self._reached[number] = 1
            self._moved[number] += gradient.any()

        return note

    def after_step(self, last: bool) -> list[str]:
        """What to say after another step, on all ranks alike; `last` if it is the run's last one.

        Collective. Errors: ValueError if nothing of a method takes part in the first step.
        """
        if not self._hooks:
            return []
        self._steps += 1
        if self._steps == 1:
            reached = self.ranks.sum(self._reached)
            return self._unreached([n for n, r in zip(self.names, reached, strict=True) if not r])
        if self._steps < WATCHED_STEPS and not last:
            return []
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        moved = self.ranks.sum(self._moved.double().cpu())
        reached = self.ranks.sum(self._reached)
        still = [n for n, r, m in zip(self.names, reached, moved, strict=True) if r and not m]
        return [
            f"no gradient in {self._steps} steps: {name} ({self._reason(name)})" for name in still
        ]

    def _unreached(self, names: list[str]) -> list[str]:
        for part in dict.fromkeys(self.trained_by[name] for name in names):
            whole = [name for name in self.names if self.trained_by[name] == part]
            if set(whole) <= set(names):
                raise ValueError(
                    f"{part}: none of its {len(whole)} trainable tensors takes part in the loss "
                    f"(the first: {whole[0]}); the modules that hold them are never run"
                )
        return [f"takes no part in the loss, and stays as it is: {name}" for name in names]

    def _reason(self, name: str) -> str:
        """Why a tensor may have no gradient, as far as that is known."""
        if name.endswith("box_projection.weight"):
            return "the boxes are all zero: model.visual_embedding.boxes, or the data's"
        if name in self._zero_at_first:
            return "it lies behind a matrix that is still zero: is the learning rate 0?"
        if self.trained_by[name] == "connector":
            return "did no row have a picture?"
        return "the cause is not known"
