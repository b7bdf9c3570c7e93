"""An example method that changes what trains: the backbone's norms begin to train half-way."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from vlds.models.methods import Adapter
from vlds.models.methods.context import Revision, Trained
from vlds.models.methods.host import Host


@dataclass(frozen=True, kw_only=True)
class NormsLater(Adapter):
    """Adapters, and norms that wait."""

    def attach(self, host: Host) -> list[nn.Parameter]:
        """Attach adapters; remember the norms."""
        norms = [p for norm in host.modules_of("norm").values() for p in norm.parameters()]
        trained = super().attach(host)
        host.revisions.append(Later(trained, norms))
        return trained


class Later(Revision):
    """Lets some weights train from the middle of the run on."""

    def __init__(self, first: list[nn.Parameter], later: list[nn.Parameter]) -> None:
        self.first, self.later = first, later

    def steps(self, num_steps: int) -> Sequence[int]:
        return [num_steps // 2]

    def revise(
        self, step: int, num_steps: int, state: Mapping[nn.Parameter, Trained]
    ) -> Mapping[nn.Parameter, Trained | None]:
        return {**state, **dict.fromkeys(self.later)}

    def fit(self, saved: Mapping[nn.Parameter, torch.Size]) -> Collection[nn.Parameter]:
        return [*self.first, *(norm for norm in self.later if norm in saved)]
