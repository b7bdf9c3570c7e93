"""NLVR2 compares two words."""

from __future__ import annotations

from vlds.tasks import NLVR2


def test_accuracy_and_choices() -> None:
    assert NLVR2().decoding.choices == ("true", "false")
    references = {"dev-1-0-0": "true", "dev-1-0-1": "false", "dev-1-1-0": None}
    predictions = {"dev-1-0-0": "true", "dev-1-0-1": "true", "dev-1-1-0": "true"}
    assert NLVR2().score(predictions, references) == {"accuracy": 0.5}
