"""Trainable weights that no loss has read yet.

ZeRO gives them a gradient of zeros, under which AdamW would let them decay. Here they stay as they
are, as in plain torch, where such weights have no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from vlds.runtime.ranks import Ranks


class IdleWeights:
    """Knows which trainable weights have had no gradient yet, on any rank. All ranks have one."""

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        self._ranks = ranks
        self._idle = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._seen: set[str] = set()
        self._hooks = {name: p.register_hook(self._note(name)) for name, p in self._idle.items()}

    def _note(self, name: str) -> Callable[[Tensor], None]:
        def note(_: Tensor) -> None:
            self._seen.add(name)

        return note

    @property
    def parameters(self) -> set[nn.Parameter]:
        """The weights that are still idle; at first all."""
        return set(self._idle.values())

    def after_backward(self) -> bool:
        """Look at the gradients of a whole step; True if weights are no longer idle.

        Collective while some are.
        """
        if not self._idle:
            return False
        flags = torch.tensor([name in self._seen for name in self._idle], dtype=torch.float64)
        seen = self._ranks.sum(flags)
        woken = [name for name, flag in zip(self._idle, seen, strict=True) if flag]
        self.wake(woken)
        return bool(woken)

    def wake(self, names: Iterable[str]) -> None:
        """Count some weights, the same on all ranks, among those that a loss has read."""
        for name in names:
            if self._idle.pop(name, None) is not None:
                self._hooks.pop(name).remove()
