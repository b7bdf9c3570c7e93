"""Pointers at proposals: which are right, which is drawn, and what counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.toys.task_samples import sample_of
from vlds.recipe.build import build as built
from vlds.schema import Sample, SkipSample
from vlds.tasks import Refer
from vlds.tasks.base import ask
from vlds.tasks.grounding import POINTERS
from vlds.tasks.metrics.plain_scores import overlap


def sample(box: list[float], **extra: Any) -> Sample:
    annotation = {"id": "r", "expression": "the dot", "box": box}
    return replace(sample_of("refer"), annotations=(annotation,), extra=extra)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ([0, 0, 4, 2], 1.0),
        ([2, 0, 4, 2], 1 / 3),
        ([0, 1, 4, 2], 1 / 3),
        ([4, 0, 4, 2], 0.0),
        ([9, 9, 1, 1], 0.0),
        ([1, 0, 2, 2], 0.5),
    ],
)
def test_overlap_is_intersection_over_union(other: list[float], expected: float) -> None:
    assert overlap([0, 0, 4, 2], other) == pytest.approx(expected)
    assert overlap(other, [0, 0, 4, 2]) == pytest.approx(expected)
    assert overlap([0, 0, 0, 0], [0, 0, 0, 0]) == 0.0


def test_a_proposal_is_drawn_by_its_overlap() -> None:
    """VL-T5: among those that overlap by half, with probability IoU / sum."""
    seen = sample([0, 0, 4, 2], proposals=[[0, 0, 4, 2], [2, 0, 4, 2], [1, 0, 2, 2]])
    drawn = [Refer().example("r", seen, 0, np.random.default_rng(n)) for n in range(600)]
    assert {example.weight for example in drawn} == {1.0}
    counts = Counter(example.target for example in drawn)
    assert set(counts) == {POINTERS[0], POINTERS[2]}
    assert counts[POINTERS[0]] / 600 == pytest.approx(1 / 1.5, abs=0.06)
    assert drawn[0].prompt == "visual grounding: the dot"


def test_what_no_proposal_holds_trains_nothing_and_is_wrong() -> None:
    seen = sample([0, 0, 4, 2], proposals=[[9, 9, 1, 1]])
    assert Refer().example("r", seen, 0, np.random.default_rng(0)).weight == 0.0
    example = Refer().example("r", seen, 0, None)
    assert Refer().answer_of(example.reference) is None
    assert Refer().score({"r": POINTERS[0]}, {"r": example.reference}) == {"accuracy": 0.0}


def test_any_right_proposal_counts() -> None:
    seen = sample([0, 0, 4, 2], proposals=[[1, 0, 2, 2], [0, 0, 4, 2], [9, 9, 1, 1]])
    example = Refer().example("r", seen, 0, None)
    assert example.target == POINTERS[1]
    for number, right in enumerate((True, True, False)):
        assert Refer().correct(POINTERS[number], example.reference) is right
        scores = Refer().score({"r": POINTERS[number]}, {"r": example.reference})
        assert scores == {"accuracy": float(right)}


def test_a_sample_without_proposals_is_a_bad_one() -> None:
    with pytest.raises(SkipSample, match="proposals"):
        ask(Refer(), "r", sample([0, 0, 4, 2]), 0, None)


def test_cells_may_stand_for_proposals() -> None:
    """The one with the centre of the box, counted row by row; at the edge it is the last one."""
    seen = sample([20, 10, 20, 10], size=[[60, 30]])
    assert Refer(grid=3).example("r", seen, 0, None).target == POINTERS[4]
    seen = sample([60, 30, 0, 0], size=[[60, 30]])
    assert Refer(grid=6).example("r", seen, 0, None).target == POINTERS[35]
    with pytest.raises(ValueError, match="grid: got 7; give a number from 1 to 6"):
        built(Refer, {"grid": 7})
