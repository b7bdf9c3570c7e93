"""Training's optimizer over a whole model in one process, in the model's own precision: what an
engine computes, without DeepSpeed and its fp32 masters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vlds.models.roles import TaskSlices
from vlds.recipe.config import AdamWUpdate
from vlds.training.optimizer import FlatPiece, TaskAdamW, segments_of


class WholeAdamW:
    """Steps of a `TaskAdamW` whose flat tensors hold copies of the groups' weights."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        update: AdamWUpdate,
        slices: Mapping[nn.Parameter, TaskSlices] | None = None,
        num_tasks: int = 0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
    ) -> None:
        self.slices = slices or {}
        self.pieces: dict[Tensor, list[FlatPiece]] = {}
        flat_groups = []
        for group in groups:
            weights = list(group["params"])
            flat = nn.Parameter(torch.cat([weight.detach().flatten() for weight in weights]))
            ends = torch.tensor([weight.numel() for weight in weights]).cumsum(0).tolist()
            self.pieces[flat] = [
                FlatPiece(end - weight.numel(), 0, weight.numel(), weight)
                for end, weight in zip(ends, weights, strict=True)
            ]
            flat_groups.append({**group, "params": [flat]})
        self.optimizer = TaskAdamW(
            flat_groups, num_tasks=num_tasks, betas=betas, eps=eps, update=update
        )
        self.idle = {piece.parameter for pieces in self.pieces.values() for piece in pieces}
        self._cut_segments()

    @property
    def parameter_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups; their "lr" is that of the next step."""
        return self.optimizer.param_groups

    @torch.no_grad()
    def step(self, present: Tensor | None = None) -> None:
        """Update the weights by their gradients. `present`: (tasks,) those with examples."""
        woken = {weight for weight in self.idle if weight.grad is not None}
        if woken:
            self.idle -= woken
            self._cut_segments()
        if present is not None:
            self.optimizer.present[1:] = present.numpy()
        for flat, pieces in self.pieces.items():
            gradients = [
                torch.zeros(piece.size, dtype=flat.dtype)
                if piece.parameter.grad is None
                else piece.parameter.grad.flatten()
                for piece in pieces
            ]
            flat.grad = torch.cat(gradients)
        self.optimizer.step()
        for flat, pieces in self.pieces.items():
            for piece in pieces:
                part = flat[piece.offset : piece.offset + piece.size]
                piece.parameter.copy_(part.view_as(piece.parameter))

    def _cut_segments(self) -> None:
        for flat, pieces in self.pieces.items():
            segments = segments_of(pieces, flat.numel(), self.slices, self.idle)
            self.optimizer.segments[flat] = segments
