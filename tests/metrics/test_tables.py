"""Names of scores say which of them are cells of a table."""

from __future__ import annotations

from vlds.metrics.tables import plain, split, table, tables

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


def test_names_alone_give_the_tables_back() -> None:
    assert plain(SCORES) == {"accuracy": 0.5, "exact_match": 0.25}
    assert tables(SCORES) == {
        ("accuracy", "answer_type"): {"yes/no": 0.75, "other": 0.25},
        ("accuracy", "steps"): {"2": 1.0},
    }
