"""What methods' modules know of the running batch, beside the states that they get.

One object per model. The model and the engine write it; modules read it.

Uses: weights stacked over tasks (`routing`); a mixture that takes one of several experts, the same
on all ranks and for any cut of the batch (`draw`); weights made from the picture (`visual`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlds.methods.routing import TaskRouting


class Visual(NamedTuple):
    """The visual tokens of a batch's examples."""

    tokens: Tensor
    """(b, v, d)."""
    mask: Tensor
    """(b, v) bool, False where an example has fewer images."""

    def mean(self) -> Tensor:
        """(b, d) of each example's tokens; 0 without images."""
        real = self.mask[..., None].to(self.tokens)
        return (self.tokens * real).sum(1) / real.sum(1).clamp(min=1)


class BatchContext:
    """Tasks, pass, step and pictures of the running batch."""

    def __init__(self, routing: TaskRouting | None = None) -> None:
        self.routing = TaskRouting() if routing is None else routing
        self.examples = torch.empty(0, dtype=torch.int64)
        """(rows,) the example of each row that runs: beams of one example are several rows."""
        self.visual: Visual | None = None
        """None while nothing has been embedded, and in models that read pictures themselves."""
        self.token_mask: Tensor | None = None
        """(b, s) bool: which of the tokens are real that an encoder reads, or a model of one
        stack."""
        self.reads_examples = False
        """True if a module's output depends on the example that a row belongs to, so that rows of
        several examples cannot be computed as one."""
        self.training = False
        """True while the model trains, which then draws."""
        self._seed, self._step, self._pass = 0, 0, 0
        self._drawn: dict[int, int] = {}

    def set_rows(self, task_index: Tensor, examples: Tensor | None, device: torch.device) -> None:
        """Rows of these tasks follow, of these examples of the batch (None: one row each)."""
        self.routing.set(task_index, device)
        rows = torch.arange(len(task_index)) if examples is None else examples
        self.examples = rows.to(device)

    @property
    def step(self) -> int:
        """Number of the running optimizer step, from 0."""
        return self._step

    def example_of_rows(self, num_rows: int) -> Tensor:
        """(num_rows,) the example of each row; several rows an example stand beside each other."""
        return self.examples.repeat_interleave(num_rows // len(self.examples))

    def begin_step(self, seed: int, step: int) -> None:
        """A micro-batch of a step follows."""
        self._seed, self._step, self._pass = seed, step, 0
        self._drawn = {}
        self.visual = self.token_mask = None

    def __deepcopy__(self, memo: dict[int, Any]) -> BatchContext:
        # A copy of a model starts without a batch.
        context = memo[id(self)] = BatchContext(deepcopy(self.routing, memo))
        context.training, context.reads_examples = self.training, self.reads_examples
        return context

    @contextmanager
    def in_pass(self, number: int) -> Iterator[None]:
        """Inside, a batch runs for the `number`-th time, from 0."""
        before, self._pass = self._pass, number
        try:
            yield
        finally:
            self._pass = before

    def draw(self, key: str, count: int) -> int:
        """One of `count` numbers from 0 on: a function of seed, step, pass and `key` alone, and so
        the same on all ranks and in all micro-batches."""
        # A layer that is computed again in the backward pass finds torch's generator as it was, and
        # so the pass that it was in.
        name = int(torch.randint(1 << 62, ()))
        number = self._drawn.setdefault(name, self._pass)
        text = f"{self._seed}/{self._step}/{number}/{key}"
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") % count
