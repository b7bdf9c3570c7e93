"""What no code that runs on an accelerator should do."""

from __future__ import annotations

import torch
from torch import Tensor


def mix(states: Tensor) -> Tensor:
    """Adds a tensor of the host."""
    return states + torch.ones(states.shape)


def copy(states: Tensor) -> Tensor:
    """Reads all numbers on the host."""
    return states.cpu()


def ask(states: Tensor) -> float:
    """Lets Python decide by a number of the device."""
    return 1.0 if states.sum() > 0 else 0.0


def pick(states: Tensor) -> Tensor:
    """Takes as many rows as a mask has."""
    return states[states[:, 0] > 0]


def bring(states: Tensor) -> Tensor:
    """Makes a tensor out of numbers of Python, which waits for the copy."""
    return states * torch.tensor([1.0, 2.0, 3.0], device=states.device)
