"""Word F1 of captions."""

from __future__ import annotations

import pytest

from vlds.tasks.metrics.caption_scores import caption_scores
from vlds.tasks.metrics.plain_scores import word_f1_values


@pytest.mark.parametrize(
    ("caption", "reference", "expected"),
    [
        ("A red circle.", "a red circle", 1.0),
        ("circle red a", "a red circle", 1.0),  # order does not count
        ("a red circle", "a blue square", 2 * 1 / 6),
        ("red red red", "red", 2 * 1 / 4),  # repeats do
        ("the man's hat", "the mans hat", 2 * 2 / 6),
        ("", "a red circle", 0.0),
        ("", "", 1.0),
        ("...", "", 1.0),
    ],
)
def test_f1(caption: str, reference: str, expected: float) -> None:
    assert word_f1_values([caption], [[reference]]) == pytest.approx([expected])


def test_best_reference_counts() -> None:
    captions = ["a red circle", "nothing"]
    references = [["two squares", "a red circle"], ["a"]]
    assert caption_scores(["word_f1"], captions, references) == {"word_f1": 0.5}
