"""Adapters whose halves are linear layers of low rank, y = x (W_left W_right) + b: VL-Adapter's
code has them beside Compacter (https://arxiv.org/abs/2112.06825), whose limit n = 1 they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vlds.methods.adapter import Adapter, materialise, merge_first
from vlds.methods.base import Case, Method, Toy
from vlds.methods.bottleneck import StackedBottleneck, StackedBottleneckModule, both_halves
from vlds.methods.compacter import LEAVES, STACKED_B
from vlds.methods.host import Host
from vlds.methods.layouts import Library
from vlds.runtime.checks import Count
from vlds.schema import STACKED, OptimizerRules


@dataclass(frozen=True, kw_only=True)
class LowRankAdapter(StackedBottleneck):
    """Bottlenecks whose halves have a low rank themselves."""

    libraries: ClassVar[frozenset[Library]] = frozenset({"reference"})
    reasons: ClassVar[Mapping[Library, str]] = merge_first("LowRankAdapter")
    library_leaves: ClassVar[Mapping[str, str]] = LEAVES

    rank: Count = 1
    """Rank of each half."""

    def module(self, linear: nn.Linear, host: Host, first: list[Any]) -> LowRankAdapterModule:
        return LowRankAdapterModule(self, linear, host)

    def merge(self, name: str, model: nn.Module, tasks: Sequence[str]) -> Mapping[str, Method]:
        """Plain adapters that compute the same."""
        return {name: materialise(self, self.sharing, name, model, tasks)}

    @classmethod
    def cases(cls) -> Mapping[str, Case]:
        factors, up_bias = 2 * (Toy.width + Toy.narrow) * (1 + Toy.tasks), Toy.width * Toy.tasks
        weights = Toy.places * (factors + Toy.narrow + up_bias)
        method = cls(reduction=4, rank=2, sharing="half_shared_down")
        decayed = "down_left down_right up_left up_right"
        return {"": Case(method, weights, decayed, "down_bias up_bias", merged=(Adapter,))}


def low_rank(rows: Tensor, left: Tensor, right: Tensor, bias: Tensor) -> Tensor:
    """(..., in) -> (..., out), from factors (in, r) and (r, out)."""
    return rows @ left @ right + bias


class LowRankAdapterModule(StackedBottleneckModule):
    """The bottlenecks of all tasks behind one layer."""

    layer = staticmethod(low_rank)
    leaves = ("left", "right", "bias")
    optimizer_rules: ClassVar[OptimizerRules] = both_halves(
        left=STACKED, right=STACKED, bias=STACKED_B
    )

    def __init__(self, config: LowRankAdapter, linear: nn.Linear, host: Host) -> None:
        super().__init__(config, linear, host)
        rank = config.rank
        self.down_left = self.new_factor(self.num_down, self.width, rank)
        self.down_right = self.new_factor(self.num_down, rank, self.bottleneck)
        self.up_left = self.new_factor(self.num_up, self.bottleneck, rank)
        self.up_right = self.new_factor(self.num_up, rank, self.width)
        self.down_bias = nn.Parameter(torch.zeros(self.num_down, self.bottleneck, **self.options))
        self.up_bias = nn.Parameter(torch.zeros(self.num_up, self.width, **self.options))
