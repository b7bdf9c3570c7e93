"""GQA's accuracy counts balanced questions and knows their types."""

from __future__ import annotations

from typing import Any

import pytest

from vlds.tasks import GQA


def reference(answer: str, structural: str, semantic: str, balanced: bool = True) -> dict[str, Any]:
    types = {"structural": structural, "semantic": semantic}
    return {"answer": answer, "balanced": balanced, "types": types}


def test_accuracy_and_its_parts() -> None:
    references = {
        "07": reference("yes", "verify", "attr"),
        "08": reference("no", "logical", "obj"),
        "09": reference("dog", "query", "obj"),
        "10": reference("cat", "query", "obj", balanced=False),
    }
    scores = GQA().score({"07": "yes", "08": "No", "09": "dog", "10": "cow"}, references)
    assert scores == pytest.approx(
        {
            "accuracy": 2 / 3,  # "No" is not "no", the unbalanced one does not count
            "accuracy/binary": 1 / 2,
            "accuracy/open": 1.0,
            "accuracy/structural/verify": 1.0,
            "accuracy/structural/logical": 0.0,
            "accuracy/structural/query": 1.0,
            "accuracy/semantic/attr": 1.0,
            "accuracy/semantic/obj": 0.5,
        }
    )


def test_without_types_there_is_the_whole_alone() -> None:
    plain = {"1": {"answer": "yes", "balanced": True, "types": {}}}
    assert GQA().score({"1": "yes"}, plain) == {"accuracy": 1.0}


def test_no_balanced_question_is_an_error() -> None:
    with pytest.raises(ValueError, match="balanced: none of the 1 questions is"):
        GQA().score({"1": "yes"}, {"1": reference("yes", "verify", "obj", balanced=False)})
