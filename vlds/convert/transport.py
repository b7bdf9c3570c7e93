"""MerA (He et al. 2023, https://arxiv.org/abs/2308.15982): the neurons of an adapter are brought
into the order of another one's by optimal transport, after which a mean of both makes sense.

A neuron is a row of the down half, its bias, and a column of the up half. With uniform masses and
the squared distances of neurons as cost, P is the plan, and the other adapter becomes

    down <- r P down,    bias <- r P bias,    up <- up (r P)^T,

whose output is the same if P is exact: then r P is a permutation. There is no public code; the
paper's costs are of weights or of activations. LoRA's A and B are such halves, without bias.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Cost = Literal["weights_in", "weights_in_out", "activations"]
COSTS: tuple[Cost, ...] = get_args(Cost)
MOST_ITERATIONS, COLUMN_TOLERANCE = 10_000, 1e-3
"""Of entropic plans. Small shares converge as slowly as one over the iterations."""


class Neurons(NamedTuple):
    """The hidden neurons of one adapter, in float64."""

    down: Tensor
    """(r, d)."""
    bias: Tensor
    """(r,), 0 where there is none."""
    up: Tensor
    """(d, r)."""

    def features(self, cost: Cost, inputs: Tensor) -> Tensor:
        """(r, f) what neurons are compared by; `inputs`: (n, d) what the adapter reads."""
        if cost == "activations":
            return (inputs @ self.down.T + self.bias).T
        weights = torch.cat([self.down, self.bias[:, None]], 1)
        return weights if cost == "weights_in" else torch.cat([weights, self.up.T], 1)

    def moved(self, plan: Tensor) -> Neurons:
        """The neurons by a plan (r, r) whose rows sum to 1."""
        return Neurons(plan @ self.down, plan @ self.bias, self.up @ plan.T)


def distances(first: Tensor, other: Tensor) -> Tensor:
    """(r, f) features of two adapters -> (r, r) squared Euclidean distances."""
    return (first[:, None] - other).square().sum(-1)


def load_pot() -> ModuleType:
    """The library POT.

    Errors: ValueError if it is missing.
    """
    try:
        return import_module("ot")
    except ImportError:
        raise ValueError(
            "--how transport needs the package POT: pip install 'vlds[transport]'"
        ) from None


def transport_plan(cost: Tensor, regularisation: float | None = None) -> Tensor:
    """(r, r) cost -> (r, r) plan whose rows sum to 1: a permutation, or with `regularisation`, a
    share of the largest cost, a mixture of neurons.

    Errors: ValueError if the library POT is missing, or if the columns of a mixture do not come to
    sum to 1 as well.
    """
    ot, size = load_pot(), len(cost)
    if not size:
        return cost  # a layer that has lost all of its neurons
    masses = torch.full((size,), 1 / size, dtype=torch.float64)
    if regularisation is None:
        # A vertex of the polytope: rounding takes away what 1 / r leaves.
        exact: Tensor = size * ot.emd(masses, masses, cost)
        return exact.round()
    scaled = cost / cost.max().clamp(min=torch.finfo(cost.dtype).tiny)
    mixed: Tensor = size * ot.sinkhorn(
        masses, masses, scaled, regularisation, method="sinkhorn_log", numItermax=MOST_ITERATIONS,
        stopThr=1e-12, warn=False,
    )  # fmt: skip
    if not (mixed.sum(0) - 1).abs().max() <= COLUMN_TOLERANCE:
        raise ValueError(
            f"--entropic: got {regularisation}; the plan has not converged after "
            f"{MOST_ITERATIONS:,} iterations; give a larger share, or leave it out"
        )
    return mixed


def aligned(
    first: Neurons,
    other: Neurons,
    cost: Cost,
    inputs: Tensor,
    regularisation: float | None = None,
) -> Neurons:
    """The other adapter, whose neurons stand where those of the first that they are like do."""
    features = (neurons.features(cost, inputs) for neurons in (first, other))
    return other.moved(transport_plan(distances(*features), regularisation))
