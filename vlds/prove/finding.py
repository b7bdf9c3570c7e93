"""What a property is, and what it finds: comparisons with tolerances, faults, and notes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from vlds.prove.bench import Bench

Verdict = Literal["holds", "fails", "left out"]
ROUNDING = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11,
            torch.bfloat16: 2.0**-8}  # fmt: skip
"""Type -> the largest relative error of one rounded operation."""
OF_UPDATES, OF_LOSSES, OF_GRADIENTS = 2**4, 2**8, 2**12
"""How many of these roundings may add up: in a weight that one update has moved, and in a number
that went through a whole model, in losses and logits, and in gradients and what follows from them.
Sums in another order differ by a few roundings
in each layer, which add up like random steps. docs/prove.md has what was measured."""
OF_CHANGES = 2**4
"""How many times as far as by one rounding of each weight numbers may be off: models that make
small differences of large numbers lose more than the roundings above. Rows differ much in it, and
runs read others than those of the bench."""
FLOOR = 1e-2
"""Numbers below this share of the largest of their kind are compared with that share: they are made
of differences between large numbers, of which rounding leaves little. The gradient of a key's bias
is 0 but for rounding, since softmax does not see what all keys share."""


class Tolerance(NamedTuple):
    """How far two ways to compute a number may be apart."""

    share: float
    """Of the largest number."""
    source: str
    """Where it comes from."""


EXACT = Tolerance(0, "nothing may differ")


def roundings(many: int, dtype: torch.dtype) -> Tolerance:
    """That of so many roundings."""
    name, one = str(dtype).removeprefix("torch."), ROUNDING[dtype]
    return Tolerance(many * one, f"{many:,} roundings of {name}, each at most {one:.1e}")


@dataclass(frozen=True)
class Comparison:
    """Two ways to compute the same numbers."""

    what: str
    difference: float
    """The largest one, as a share of the largest number."""
    tolerance: Tolerance
    where: str = ""
    """Where it is largest."""

    @property
    def holds(self) -> bool:
        # So written, NaN is above every tolerance.
        return self.difference <= self.tolerance.share

    @property
    def text(self) -> str:
        """One line for a reader."""
        place = f" at {self.where}" if self.where and not self.holds else ""
        return f"{self.what}: {self.difference:.2g} (tolerance {self.tolerance.share:.2g}){place}"

    @property
    def short(self) -> str:
        """The numbers, for a line of the terminal."""
        sign, limit = "<=" if self.holds else ">", self.tolerance.share
        return f"{self.difference:.2g} {sign} {limit:.2g}"


@dataclass(frozen=True)
class Token:
    """A token as the model reads it."""

    text: str
    learned: bool
    """It counts in the loss."""


@dataclass(frozen=True)
class ShownRow:
    """A row as the model sees it."""

    task: str
    id: str
    pictures: tuple[bytes, ...]
    """PNG files."""
    read: tuple[Token, ...]
    """The prompt's tokens, and those of the answer where one row holds both."""
    learned: tuple[Token, ...]
    """The answer's tokens, where a decoder writes them."""
    target: str
    """The answer as the task has it."""


@dataclass(frozen=True)
class Finding:
    """What a property has found. It holds if all comparisons do and there are no faults."""

    compared: tuple[Comparison, ...] = ()
    faults: tuple[str, ...] = ()
    """What is wrong: place, values, cure."""
    notes: tuple[str, ...] = ()
    """What a user should know, though nothing is wrong."""
    left_out: str = ""
    """Why nothing could be compared; then there is nothing else."""
    rows: tuple[ShownRow, ...] = field(default=(), repr=False)

    @property
    def verdict(self) -> Verdict:
        if self.left_out:
            return "left out"
        return "holds" if not self.faults and all(c.holds for c in self.compared) else "fails"

    @property
    def worst(self) -> Comparison | None:
        """The comparison that is nearest to its tolerance, or farthest beyond."""

        # NaN counts as the farthest, and exact agreement with a tolerance of 0 as the nearest.
        def distance(each: Comparison) -> float:
            if not each.holds and not each.tolerance.share:
                return math.inf
            share = each.difference / (each.tolerance.share or 1)
            return math.inf if math.isnan(share) else share

        return max(self.compared, key=distance, default=None)


@dataclass(frozen=True)
class Property:
    """One claim about a recipe on this machine, and how to try it."""

    name: str
    claim: str
    """What holds if nothing is found, in one sentence."""
    check: Callable[[Bench], Finding]
    needs: tuple[str, ...] = ()
    """Properties without which this one says nothing: if one fails, the fault is there."""
    in_short: bool = True
    """Part of `vlds train --prove`: it starts no processes, and needs few steps."""
    cost: float = 1
    """About how many times as long as `reads-right` it takes, to say how much time is left."""


def compare_numbers(
    what: str, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], tolerance: Tolerance
) -> Comparison:
    """The largest difference of tensors of the same names, each as a share of its largest number,
    but of at least `FLOOR` times the largest of all."""
    missing = ours.keys() ^ theirs.keys()
    if missing:
        return Comparison(what, math.inf, tolerance, f"{min(missing)}, which only one side has")
    wrong = [name for name in ours if ours[name].shape != theirs[name].shape]
    if wrong:
        return Comparison(what, math.inf, tolerance, f"{wrong[0]}, whose shapes differ")
    largest = {name: _largest(values) for name, values in theirs.items()}
    floor = FLOOR * max(largest.values(), default=0.0)
    worst, where = 0.0, ""
    for name, values in ours.items():
        distance = _largest(values.double() - theirs[name].to(values.device).double())
        scale = max(largest[name], floor)
        share = distance / scale if scale else (math.inf if distance else 0.0)
        if math.isnan(share) or share > worst:
            worst, where = share, name
        if math.isnan(share):
            break
    return Comparison(what, worst, tolerance, where)


def _largest(values: Tensor) -> float:
    return float(values.double().abs().max()) if values.numel() else 0.0
