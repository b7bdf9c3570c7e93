"""Boxes as text: thousandths of the picture, and back."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.toys.task_samples import sample_of
from vlds.data.streams.stream import ask_all
from vlds.recipe.build import build as built
from vlds.schema import Sample, SkipSample
from vlds.tasks import Grounding, Refer
from vlds.tasks.base import ask
from vlds.tasks.grounding import POINTERS, box_of, box_text
from vlds.tasks.metrics.plain_scores import overlap


def test_a_box_is_four_numbers() -> None:
    example = Grounding().example("g", sample_of("refer"), 1, None)
    assert (example.prompt, example.target) == ("locate: the dog", "250 500 500 1000")
    assert example.reference == {
        "answer": "250 500 500 1000", "box": [10, 10, 10, 10], "size": [40, 20],
    }  # fmt: skip


@pytest.mark.parametrize("box", [[0, 0, 640, 480], [3.2, 7.9, 31.5, 12.25], [600, 400, 40, 80]])
def test_a_box_comes_back(box: list[float]) -> None:
    size = (640, 480)
    assert overlap(box_of(box_text(box, size), size) or [], box) > 0.95


def test_a_box_over_the_edge_is_cut_there() -> None:
    assert box_text([-5, 10, 30, 20], (20, 20)) == "0 500 1000 1000"


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("[250, 500, 500, 1000]", [10.0, 10.0, 10.0, 10.0]),
        ("500 0 250 10", [20.0, 0.0, -10.0, 0.2]),
        ("", None),
        ("1 2 3", None),
        ("1 2 3 4 5", None),
        ("9" * 5000, None),
    ],
)
def test_other_texts(text: str, box: list[float] | None) -> None:
    assert box_of(text, (40, 20)) == pytest.approx(box)
    reference = {"box": [10, 10, 10, 10], "size": [40, 20], "answer": ""}
    assert Grounding().correct(text, reference) is (text.startswith("["))


def test_half_an_overlap_is_enough() -> None:
    reference = {"answer": "", "box": [0, 0, 100, 10], "size": [1000, 1000]}
    assert Grounding().score({"g": "0 0 50 10"}, {"g": reference}) == {"accuracy": 1.0}
    assert Grounding().score({"g": "0 0 49 10"}, {"g": reference}) == {"accuracy": 0.0}


@pytest.mark.parametrize(
    ("box", "size"),
    [
        ([1, 1, 2], [40, 20]),
        ([1, 1, 2, 2], [0, 0]),
        ([1, 1, -2, 2], [40, 20]),
        ([1e308] * 4, [40, 20]),
    ],
)
def test_a_box_that_is_none_is_a_bad_sample(box: list[Any], size: list[int]) -> None:
    sample = sample_of("refer")
    (first, *_) = sample.annotations
    sample = replace(sample, annotations=({**first, "box": box},), extra={"size": [size]})
    for rng in (np.random.default_rng(0), None):
        with pytest.raises(SkipSample, match=f"{sample.key}: its annotations are not what Groundi"):
            ask(Grounding(), "g", sample, 0, rng)
    # `verify` asks all tasks, and goes on.
    assert any("Grounding" in fault for fault in ask_all(sample).faults)


# Pointers at proposals: which are right, which is drawn, and what counts.


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


def test_cells_may_stand_for_proposals() -> None:
    """The one with the centre of the box, counted row by row; at the edge it is the last one."""
    seen = sample([20, 10, 20, 10], size=[[60, 30]])
    assert Refer(grid=3).example("r", seen, 0, None).target == POINTERS[4]
    seen = sample([60, 30, 0, 0], size=[[60, 30]])
    assert Refer(grid=6).example("r", seen, 0, None).target == POINTERS[35]
    with pytest.raises(ValueError, match="grid: got 7; give a number from 1 to 6"):
        built(Refer, {"grid": 7})
