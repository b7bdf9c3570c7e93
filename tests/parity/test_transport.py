"""Merging by transport follows the formulas, value by value."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.toys.recorded.related import RelatedCase, recorded
from vlds.convert.transport import COSTS, Cost, Neurons, aligned, distances, transport_plan


def neurons(case: RelatedCase, number: int) -> Neurons:
    """One recorded adapter."""
    return Neurons(*(case[f"adapter{number}/{part}"] for part in ("down", "bdown", "up")))


def output(inputs: Tensor, merged: Neurons, bias: Tensor) -> Tensor:
    """What an adapter computes."""
    narrow = F.gelu(inputs @ merged.down.T + merged.bias)
    return inputs + narrow @ merged.up.T + bias


@pytest.mark.parametrize("cost", COSTS)
@recorded("mera_merge")
def test_plans_and_merged_adapters(path: Path, cost: Cost) -> None:
    pytest.importorskip("ot", reason="needs the extra `transport`")
    case = RelatedCase(path)
    if cost not in case["costs"]:
        pytest.skip(f"recorded without the cost {cost}")
    first, *others = (neurons(case, number) for number in range(case["adapters"]))
    biases = [case[f"adapter{number}/bup"] for number in range(case["adapters"])]
    features = first.features(cost, case["probe"])
    for kind, regularisation in (
        ("exact", None),
        ("entropic", case["entropic_reg_of_max_normalised_cost"]),
    ):
        moved = [first]
        for number, other in enumerate(others, 1):
            between = distances(features, other.features(cost, case["probe"]))
            assert (between - case[f"{cost}/cost{number}"]).abs().max() < 1e-9
            plan = transport_plan(between, regularisation)
            recorded_plan = case[f"{cost}/{kind}/plan{number}"]
            assert (plan / len(plan) - recorded_plan).abs().max() < 1e-9
            moved.append(aligned(first, other, cost, case["probe"], regularisation))
        merged = Neurons(*(torch.stack(parts).mean(0) for parts in zip(*moved, strict=True)))
        bias = torch.stack(biases).mean(0)
        for ours, name in zip((*merged, bias), ("down", "bdown", "up", "bup"), strict=True):
            assert (ours - case[f"{cost}/{kind}/merged/{name}"]).abs().max() < 1e-9
        out = output(case["x"], merged, bias)
        assert (out - case[f"{cost}/{kind}/out"]).abs().max() < 1e-9
