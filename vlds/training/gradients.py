"""The gradients of a run: which weights they reach, and how ZeRO stage 2 sums them.

`IdleWeights` keeps weights that no loss has read as they are. `GradientWatch` reports weights that
should train and do not. `GradientSums` makes DeepSpeed's sums with fewer passes over memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from vlds.models.kernels.fused import chunks
from vlds.models.methods.host import zero_at_first
from vlds.runtime.ranks import Ranks

WATCHED_STEPS = 20
"""Steps after which tensors without any gradient are reported."""


class IdleWeights:
    """Knows which trainable weights no loss has read yet, on any rank. All ranks have one.

    ZeRO gives them a gradient of zeros, under which AdamW would let them decay. The engine leaves
    them as they are, as in plain torch, where such weights have no gradient.
    """

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        self._ranks = ranks
        self._idle = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._seen: set[str] = set()
        self._hooks = {n: p.register_hook(partial(self._note, n)) for n, p in self._idle.items()}

    def _note(self, name: str, _: Tensor) -> None:
        self._seen.add(name)

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
        # Ranks read different examples: what one has seen is awake on all.
        flags = torch.tensor([name in self._seen for name in self._idle], dtype=torch.float64)
        seen = self._ranks.sum(flags)
        woken = [name for name, flag in zip(self._idle, seen, strict=True) if flag]
        self.wake(woken)
        return bool(woken)

    def wake(self, names: Iterable[str]) -> None:
        """Say that a loss has read these weights, the same on all ranks."""
        for name in names:
            if self._idle.pop(name, None) is not None:
                self._hooks.pop(name).remove()


IDLE = ".idle_"
"""In the names of weights that no loss reads, and that an original code has too."""
UNKNOWN = "the cause is not known"
"""Why a tensor has no gradient, where the watch has no better answer."""


def is_explained(line: str) -> bool:
    """True for a line of the watch that says, at its end, why a tensor rightly stands still."""
    return line.endswith(")") and UNKNOWN not in line


class GradientWatch:
    """Checks in a run's first steps that what should train does. All ranks have one.

    A method whose module is never run, or runs behind something that cuts the gradient, would train
    nothing without an error. So this counts, for each trainable tensor, whether gradients came and
    whether one was not zero.
    """

    def __init__(self, model: nn.Module, trained_by: Mapping[str, str], ranks: Ranks) -> None:
        self.ranks, self.trained_by = ranks, trained_by
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.names = [name for name, _ in trained]
        self._zero_at_first = zero_at_first(model)
        self._reached = torch.zeros(len(self.names), dtype=torch.float64)
        # On the device: to ask a GPU in each hook would make it wait.
        self._moved = torch.zeros(len(self.names), device=ranks.device)
        self._steps = 0
        self._hooks = [
            parameter.register_hook(partial(self._note, number))
            for number, (_, parameter) in enumerate(trained)
        ]

    def _note(self, number: int, gradient: Tensor) -> None:
        self._reached[number] = 1
        self._moved[number] += gradient.any()

    def after_step(self, last: bool) -> list[str]:
        """What to say after another step, on all ranks alike; `last` if it is the run's last one.

        Collective. Errors: ValueError if nothing of a method takes part in the first step.
        """
        if not self._hooks:
            return []
        self._steps += 1
        if self._steps == 1:
            reached = self.ranks.sum(self._reached)
            missing = [n for n, r in zip(self.names, reached, strict=True) if not r]
            for part in dict.fromkeys(self.trained_by[name] for name in missing):
                whole = [name for name in self.names if self.trained_by[name] == part]
                if set(whole) <= set(missing):
                    raise ValueError(
                        f"{part}: none of its {len(whole)} trainable tensors takes part in the "
                        f"loss (the first: {whole[0]}); the modules that hold them are never run"
                    )
            return [
                f"takes no part in the loss, and stays as it is: {name}"
                f"{' (as in the original code)' if IDLE in name else ''}"
                for name in missing
            ]
        if self._steps < WATCHED_STEPS and not last:
            return []
        for hook in self._hooks:  # they cost time in each later step
            hook.remove()
        self._hooks = []
        moved = self.ranks.sum(self._moved.double().cpu())
        reached = self.ranks.sum(self._reached)
        still = [n for n, r, m in zip(self.names, reached, moved, strict=True) if r and not m]
        return [
            f"no gradient in {self._steps} steps: {name} ({self._reason(name)})" for name in still
        ]

    def _reason(self, name: str) -> str:
        """Why a tensor may have no gradient, as far as that is known."""
        if name.endswith("box_projection.weight"):
            return "the boxes are all zero: model.visual_embedding.boxes, or the data's"
        if name in self._zero_at_first:
            return "it lies behind a matrix that is still zero: is the learning rate 0?"
        if self.trained_by[name] == "connector":
            return "did no row have a picture?"
        return UNKNOWN


def sum_in_place(zero: Any, ranks: Ranks) -> None:
    """Let DeepSpeed's optimizer `zero` of stage 2 use `GradientSums`. One that offloads its state
    stays as it is: its sums lie elsewhere.

    DeepSpeed copies gradients five times, also where no other rank waits for them, looks for
    numbers that are not finite, and copies all to float64 for their norm: where all weights train,
    a third of the step (benchmarks/train.md). Replaces private methods of DeepSpeed 0.19; a test
    compares with its own sums.
    """
    if zero.cpu_offload:
        return
    sums = GradientSums(zero, ranks)
    zero._build_compact_grad_partition_buffer = sums.start
    zero.scaled_global_norm = sums.norm
    # A number that is not finite makes the norm so, and DeepSpeed then skips the step too.
    zero.has_overflow = lambda partition_gradients: False
    # Alone, no message to other ranks is under way, so each gradient can join its sum at once.
    if sums.is_alone:
        zero._use_compact_grad_partition_buffer = lambda group: True
        zero.process_gradients = sums.add
        zero.reduce_ipg_grads = sums.end_backward


class GradientSums:
    """The sums of one step's gradients, in the memory of those of the step before."""

    def __init__(self, zero: Any, ranks: Ranks) -> None:
        self._zero, self._ranks = zero, ranks
        self.is_alone = ranks.world_size == 1
        self._make = zero._build_compact_grad_partition_buffer
        self._kept: dict[int, Any] = {}
        """Group of the optimizer -> its sums."""
        self._old: set[nn.Parameter] = set()
        """Weights whose sums are still those of an earlier step."""

    def start(self, group: int) -> Any:
        """The sums of a group of the optimizer, for a step that begins."""
        if group not in self._kept:
            self._kept[group] = self._make(group)
        elif self.is_alone:
            # The first gradient overwrites an old sum: that saves a pass of zeros.
            self._old |= set(self._zero.params_in_partition[group])
        else:
            self._kept[group].flat_partition.zero_()
        return self._kept[group]

    def sum_of(self, weight: nn.Parameter, group: int) -> Tensor:
        """(n,) the sum of a weight's gradients, a view."""
        number, size = self._zero.get_param_id(weight), weight.numel()
        total: Tensor = self._zero._get_compact_grad_partition_slice(group, 0, number, size)
        return total

    def add(self, weight: nn.Parameter, group: int) -> None:
        """Add a weight's gradient to its sum, and free it."""
        assert weight.grad is not None
        total, gradient = self.sum_of(weight, group), weight.grad.flatten()
        if weight in self._old:
            self._old.remove(weight)
            total.copy_(gradient)
        else:
            # The gradient may be bf16 and the sum fp32: convert a piece at a time.
            for part in pieces(total):
                total[part] += gradient[part]
        weight.grad = None

    def end_backward(self) -> None:
        """Weights without a gradient have a sum of zeros."""
        for group, weights in enumerate(self._zero.params_in_partition):
            self._zero._get_compact_grad_partition_buffer(group)
            for weight in self._old.intersection(weights):
                self.sum_of(weight, group).zero_()
        self._old.clear()

    def norm(self) -> Tensor:
        """The norm of the global batch's gradient, from squares in float64; on the host.
        Collective."""
        parts = [part for group in self._zero.averaged_gradients.values() for part in group]
        if parts[0].device.type == "cpu":
            total = torch.stack([square_sum(part) for part in parts]).sum()
        else:  # many tensors in one call: a GPU's time goes into starting its work
            total = get_total_norm(parts).double().square()
        # To the host at once: DeepSpeed asks for the number again for each group of weights.
        return self._ranks.sum(total).sqrt().float().cpu()


def square_sum(values: Tensor) -> Tensor:
    """The sum of the squares of numbers of any shape, in float64."""
    flat = values.flatten()
    total = torch.zeros((), dtype=torch.float64, device=values.device)
    for part in pieces(flat):
        total += flat[part].double().square_().sum()
    return total


def pieces(values: Tensor) -> Iterator[slice]:
    """Numbers that are converted together, so that the copy stays in a processor's cache."""
    return chunks(len(values), 1, None if values.device.type == "cpu" else len(values))
