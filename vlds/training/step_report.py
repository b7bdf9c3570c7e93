"""What an optimizer step has to tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step did."""

    task_losses: Tensor
    """(k,) this rank's shares; summed over ranks they are the tasks' losses."""
    examples: Tensor
    """(k,) examples of each task in the global batch."""
    gradient_norm: float
    added: Mapping[str, float]
    """Method -> this rank's share of what it adds to the loss."""
    skipped: bool = False
    """True if loss or gradient was not finite, so that no weight has changed: the same on all
    ranks."""
    not_finite: list[str] = field(default_factory=list)
    """Ids of this rank's examples whose own loss was not finite."""
