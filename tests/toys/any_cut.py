"""Runs of a few steps that ranks, stages and micro-batches cut in other ways, and what must be
alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.toys.engines import Case, make_case


class Cut(NamedTuple):
    """How a run is cut."""

    ranks: int
    stage: int
    micro_batch_size: int


ANY_CUT = pytest.mark.parametrize(
    "cut",
    [
        Cut(2, 3, 4),
        pytest.param(Cut(2, 2, 8), marks=pytest.mark.slow),
        pytest.param(Cut(4, 3, 2), marks=pytest.mark.slow),
    ],
    ids=lambda cut: "-".join(map(str, cut)),
)
ANY_FAMILY = pytest.mark.parametrize("family", ["T5", pytest.param("Bart", marks=pytest.mark.slow)])
Train = Callable[[Case], dict[str, Any]]
"""Runs a case on a rank: its "losses", "norms", maybe "added" terms, and on the first rank the
engine's "state"; None elsewhere."""


def check_cut(
    train: Train, cut: Cut, request: pytest.FixtureRequest, folder: Path, **fields: Any
) -> list[dict[str, Any]]:
    """Compare a cut run with one whose ranks compute their shares at once, at stage 2; what that
    one gives, then what each rank of the cut run gives. `fields`: of the case."""
    pool = request.getfixturevalue(f"ranks{cut.ranks}")
    for name in ("whole", "cut"):
        (folder / name).mkdir()
    whole = make_case(folder / "whole", stage=2, **fields)
    expected: dict[str, Any] = pool.run(train, whole, timeout=120)[0]
    sizes = {"stage": cut.stage, "micro_batch_size": cut.micro_batch_size}
    of_ranks = pool.run(train, make_case(folder / "cut", **sizes, **fields), timeout=120)
    for found in of_ranks:
        assert found.keys() == expected.keys()
        for key in {"losses", "added"} & found.keys():
            for one, other in zip(found[key], expected[key], strict=True):
                assert torch.allclose(one, other, rtol=1e-4, atol=1e-6), key
        assert found["norms"] == pytest.approx(expected["norms"], rel=1e-3)
        if found["state"] is not None:
            assert_same_state(found["state"], expected["state"])
    return [expected, *of_ranks]


def assert_same_state(
    found: dict[str, dict[str, torch.Tensor]], expected: dict[str, dict[str, torch.Tensor]]
) -> None:
    """The same weights have the same masters and moments, but for sums in another order."""
    assert found.keys() == expected.keys()
    for weight, tensors in expected.items():
        for key, tensor in tensors.items():
            assert torch.allclose(found[weight][key], tensor, rtol=1e-3, atol=1e-3), (weight, key)
