"""GQA counts balanced questions, and computes the scores that the data allow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.toys.files import write
from vlds.schema import Sample
from vlds.tasks import GQA


def annotation(key: str, answer: str, structural: str = "query", **fields: Any) -> dict[str, Any]:
    types = {"structural": structural, "semantic": "attr", "detailed": "attrVerify"}
    return {"id": key, "question": "Is it red?", "answer": answer, "types": types, **fields}


def references_of(*annotations: dict[str, Any]) -> dict[str, Any]:
    sample = Sample("0", "toy", "image", "gqa", (b"",), (), annotations)
    examples = [GQA().example("gqa", sample, number, None) for number in range(len(annotations))]
    return {example.id: example.reference for example in examples}


def test_all_that_an_official_question_has_is_scored() -> None:
    program = [
        {"operation": "select", "argument": "car (1)"},
        {"operation": "verify color", "argument": "red (1)"},
        {"operation": "exist", "argument": "?"},
    ]
    references = references_of(
        annotation(
            "07", "yes", "verify", balanced=True, groups={"global": "car", "local": "x"},
            entailed=["08"], source={"semantic": program},
        ),
        annotation("08", "no", "verify", balanced=False, entailed=["07"]),
    )  # fmt: skip
    assert GQA().score({"07": "yes", "08": "yes"}, references) == {
        "accuracy": 1.0,
        "consistency": 0.0,
        "distribution": 0.0,
        "accuracy/half/binary": 1.0,
        "accuracy/structural/verify": 1.0,
        "accuracy/semantic/attr": 1.0,
        "accuracy/steps/2": 1.0,
        "accuracy/words/3": 1.0,
    }


def test_no_balanced_question_is_an_error() -> None:
    references = references_of(annotation("1", "yes", balanced=False))
    with pytest.raises(ValueError, match="balanced: none of the 1 questions is"):
        GQA().score({"1": "yes"}, references)


def test_validity_and_plausibility_from_the_file_or_its_parts(tmp_path: Path) -> None:
    references = references_of(
        annotation("01", "red"), annotation("02", "blue"), annotation("03", "x", balanced=False)
    )
    predictions = {"01": "green", "02": "wood", "03": "x"}
    first = {"01": {"valid": ["red", "green"], "plausible": ["red"]},
             "99": {"valid": [], "plausible": []}}  # fmt: skip
    second = {"02": {"valid": ["blue", "red"], "plausible": ["blue"]}}
    write(tmp_path / "train_choices_0.json", first)
    write(tmp_path / "train_choices_1.json", second)
    task = GQA(choices=str(tmp_path))
    assert task.missing_for_scores() is None
    scores = task.score(predictions, references)
    assert (scores["validity"], scores["plausibility"]) == (0.5, 0.0)
    one = GQA(choices=str(tmp_path / "train_choices_0.json"))
    with pytest.raises(ValueError, match="knows nothing of 1 of 2 questions, such as 02; name the"):
        one.score(predictions, references)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[]", r"it is \[\], an object expected; name eval/val_choices.json"),
        ('{"01": {"valid": [], "plausible": "red"}}', r"01\.plausible is 'red', a valid array exp"),
    ],
)
def test_choices_of_another_shape_are_refused(tmp_path: Path, text: str, complaint: str) -> None:
    """Damaged choices are reported when they are read, before decoding starts."""
    file = tmp_path / "choices.json"
    file.write_text(text, "utf-8")
    task = GQA(choices=str(file))
    with pytest.raises(ValueError, match=rf"^choices: .*choices\.json: {complaint}") as caught:
        task.score({"01": "red"}, references_of(annotation("01", "red")))
    assert task.missing_for_scores() == str(caught.value)


def test_questions_that_do_not_count_may_be_left_out() -> None:
    """As in the official script, unbalanced questions may stay unanswered; a note says that
    consistency is missing."""
    references = references_of(
        annotation("01", "red", entailed=["02"]), annotation("02", "no", balanced=False)
    )
    whole = GQA().score({"01": "red", "02": "no"}, references)
    assert whole["consistency"] == 1.0
    assert GQA().notes({"01": "red", "02": "no"}, references) == []
    assert GQA().num_scored(references) == 1
    part = GQA().score({"01": "red"}, references)
    assert part == {name: value for name, value in whole.items() if name != "consistency"}
    assert GQA().notes({"01": "red"}, references) == [
        "1 questions have no prediction: not balanced, left out; no consistency"
    ]
    with pytest.raises(ValueError, match="1 of 2 examples have no prediction: 01"):
        GQA().score({"02": "no"}, references)
