"""A score's name says whether it is a cell of a table."""

from __future__ import annotations

from math import nan

from vlds.tasks.metrics.plain_scores import plain, score_values, split, table

SCORES = {
    "accuracy": 0.5,
    **table("accuracy", "answer_type", {"yes/no": 0.75, "other": 0.25}),
    **table("accuracy", "steps", {"2": 1.0}),
    "exact_match": 0.25,
}


def test_cells_have_full_names() -> None:
    assert list(SCORES) == [
        "accuracy", "accuracy/answer_type/yes/no", "accuracy/answer_type/other",
        "accuracy/steps/2", "exact_match",
    ]  # fmt: skip


def test_a_name_is_split_at_two_slashes_at_most() -> None:
    assert split("accuracy/answer_type/yes/no") == ("accuracy", "answer_type", "yes/no")
    assert split("accuracy") is None
    assert split("bleu/4") is None, "a name of the user's own is a score"


def test_names_alone_tell_whole_scores_from_cells() -> None:
    assert plain(SCORES) == {"accuracy": 0.5, "exact_match": 0.25}


def test_examples_of_other_groups_do_not_count_in_a_cell() -> None:
    values, steps = {"accuracy": [1.0, 0.0, 0.5, 0.25]}, {"steps": [2, 3, 2, None]}
    assert score_values("accuracy", values) == values["accuracy"]
    assert str(score_values("accuracy/steps/2", values, steps.get)) == "[1.0, nan, 0.5, nan]"
    assert str(score_values("accuracy/steps/None", values, steps.get)) == str([nan] * 4)
    assert score_values("consistency", values) is None
