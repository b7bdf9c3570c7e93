"""What a micro-batch draws."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from vlds.kernels.dropout import StepDropout
from vlds.kernels.step import step_kernels
from vlds.models.model import Model


@contextmanager
def step_draws(
    model: Model, seed: int, step: int, micro_step: int, global_rank: int
) -> Iterator[None]:
    """Inside, dropout is a function of (seed, step, example) on a CPU and all else that is drawn
    one of (seed, step, micro-step, rank): a resumed run needs no generator states."""
    entropy = (seed, step, micro_step, global_rank)
    torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1))
    model.context.begin_step(seed, step)
    with step_kernels(model, StepDropout(seed, step)):
        yield
