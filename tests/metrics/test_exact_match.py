"""Accuracy by equality."""

from __future__ import annotations

import pytest

from vlds.tasks.metrics.plain_scores import consistency, fold, matches, mean, mean_by_group, worth


def test_only_equal_texts_count() -> None:
    assert mean(matches(["red", "Red", "red ", "blue"], ["red"] * 4)) == 0.25


def test_fold_forgets_case_and_white_space() -> None:
    assert fold(" Left\tLung \n") == "left lung"


def test_groups_are_sorted_and_none_is_no_group() -> None:
    means = mean_by_group([1.0, 0.0, 1.0, 1.0], ["b", "b", "a", None])
    assert list(means.items()) == [("a", 1.0), ("b", 0.5)]
    assert list(mean_by_group([1.0, 0.0, 0.5], [10, 2, None])) == ["2", "10"]


def test_what_cannot_be_scored_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to score"):
        mean(matches([], []))
    with pytest.raises(ValueError, match=r"shorter|longer"):
        matches(["red"], ["red", "blue"])


def test_a_group_is_right_when_all_of_it_is() -> None:
    assert consistency([1.0, 1.0, 0.0, 1.0], ["a", "a", "b", "b"]) == 0.5
    with pytest.raises(ValueError, match="nothing to score"):
        consistency([], [])


def test_worth_of_an_answer() -> None:
    assert [worth(text, {"Left Lung": 0.9}) for text in ("left  lung", "lung")] == [0.9, 0.0]
