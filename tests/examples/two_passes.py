"""An example method with a second pass: what two draws of dropout predict should be alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from vlds.models.methods import Adapter
from vlds.models.methods.context import BatchLoss, Predicted
from vlds.models.methods.host import Host


@dataclass(frozen=True, kw_only=True)
class TwoPasses(Adapter):
    """Adapters, and a distance between two passes (R-Drop, Liang et al. 2021)."""

    weight: float = 1.0
    """Of the distance."""

    def attach(self, host: Host) -> list[nn.Parameter]:
        """Attach adapters, and the loss that asks for two passes."""
        host.batch_losses.append(Distance(self.weight))
        return super().attach(host)


class Distance(BatchLoss):
    """The squared difference of the labels' log-likelihoods."""

    passes: ClassVar[int] = 2

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def of_examples(self, passes: Sequence[Predicted]) -> Tensor:
        """(b,): a sum over tokens, as an example's likelihood is."""
        first, second = (
            -F.cross_entropy(p.logits, p.labels[p.places], reduction="none") for p in passes
        )
        return self.weight * passes[0].by_example((first - second).square()).sum(1)
