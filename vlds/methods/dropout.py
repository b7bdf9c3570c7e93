"""Dropout that a CPU draws quickly.

On a CPU, torch draws 64 random bits for each element, one element at a time. Sixteen bits each are
enough: the probability differs from the one asked for by less than 1 / 65,536.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 1 << 16
"""Number of values that an element's draw can have."""
DRAWS_PER_NUMBER = 4
"""Draws of 16 bits in one number of 64."""


def dropout(inputs: Tensor, probability: float, training: bool) -> Tensor:
    """Set elements to zero with a probability and scale the others, so that the mean stays.

    Draws from torch's global generator, as `torch.nn.functional.dropout` does, but other numbers.
    """
    if not training or probability == 0 or inputs.device.type != "cpu":
        return F.dropout(inputs, probability, training)
    dropped = min(round(probability * LEVELS), LEVELS - 1)
    return inputs * draw_kept(inputs.shape, dropped).to(inputs.dtype).mul_(
        LEVELS / (LEVELS - dropped)
    )


def draw_kept(shape: torch.Size, dropped: int) -> Tensor:
    """1 where an element is kept and 0 where not, as int16: `dropped` of the `LEVELS` are 0."""
    count = shape.numel()
    numbers = torch.empty(-(-count // DRAWS_PER_NUMBER), dtype=torch.int64).random_(
        -(1 << 63), None
    )
    levels = numbers.view(torch.int16)[:count].view(shape)
    last = dropped - 1 - LEVELS // 2
    # Between two neighbouring integers: faster than a comparison, whose booleans must be converted.
    return levels.clamp_(last, last + 1).sub_(last)
