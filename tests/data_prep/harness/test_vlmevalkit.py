"""Tables of VLMEvalKit become data sets for three tasks."""

from __future__ import annotations

import base64
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from data_prep.cli import main
from tests.toys.pictures import jpeg
from vlds.data.shards.sample import Sample
from vlds.data.shards.store import open_dataset
from vlds.tasks import VQA, Chat, MultipleChoice

FIRST, SECOND = (base64.b64encode(jpeg(width=width)).decode() for width in (30, 31))
QUESTION = {"index": "7", "image": FIRST, "question": "What is\tit?", "answer": "B"}
CHOICES = {"A": "a cat", "B": "None", "hint": "Look.", "category": "animals"}


def packed(folder: Path, rows: Sequence[Mapping[str, str]], *more: str) -> list[Sample]:
    """The samples of a table with these rows, by their ids."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with (folder / "table.tsv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    words = ["--tsv", str(folder / "table.tsv"), "--out", str(folder / "out"), *more]
    if main(["vlmevalkit", *words]):
        return []
    dataset = open_dataset(str(folder / "out"))
    samples = (dataset.read(number) for number in range(dataset.num_samples))
    return sorted(samples, key=lambda sample: sample.annotations[0]["id"])


def test_a_conversation_has_the_words_of_vlmevalkits_prompt(tmp_path: Path) -> None:
    (sample,) = packed(tmp_path, [{**QUESTION, **CHOICES}])
    example = Chat().example("chat", sample, 0, None)
    (turn,) = example.turns
    assert turn.content == (
        None,
        "Hint: Look.\nQuestion: What is\tit?\nOptions:\nA. a cat\nB. None\n"
        "Please select the correct answer from the options above. \n",
    )
    assert (example.id, example.target) == ("7", "B")
    assert bytes(sample.images[0]) == base64.b64decode(FIRST)
    assert sample.annotations[0]["source"] == {"category": "animals"}


def test_choices_have_groups_and_an_answers_number(tmp_path: Path) -> None:
    unlabelled = {**QUESTION, **CHOICES, "index": "8", "answer": ""}
    rows = [{**QUESTION, **CHOICES}, unlabelled]
    (sample,) = packed(tmp_path, rows, "--form", "multiple_choice")  # both are about one picture
    task = MultipleChoice()
    examples = [task.example("m", sample, number, None) for number in range(2)]
    assert {e.prompt for e in examples} == {
        "choose: What is it? context: Look. options: (A) a cat (B) None"
    }
    assert [example.target for example in examples] == ["B", None]
    references = {"7": examples[0].reference}
    assert task.score({"7": "A"}, references) == {"accuracy": 0.0, "accuracy/category/animals": 0.0}


def test_answers_may_be_a_list_and_pictures_several(tmp_path: Path) -> None:
    answers = ["two", "one", "two"]
    row = {**QUESTION, "image": str([FIRST, SECOND]), "answer": str(answers)}
    other = {**QUESTION, "index": "8", "image": "9", "answer": "x"}  # the picture of row 9
    third = {**QUESTION, "index": "9", "image": SECOND, "answer": "y"}
    first, second = packed(tmp_path, [row, other, third], "--form", "vqa", "--ending", "One word.")
    assert len(first.images) == 2
    example = VQA().example("vqa", first, 0, None)
    assert example.prompt == "vqa: What is it? One word."
    assert example.target == "two"
    assert [a["answers"] for a in second.annotations] == [["x"], ["y"]]


@pytest.mark.parametrize(
    ("fields", "form", "reason"),
    [
        ({"answer": "C"}, "chat", "the answer 'C', which names no option"),
        ({"image": ""}, "chat", "no picture"),
        ({"image": "8"}, "chat", "a picture of another row, which has none"),
        ({"image": "not base64 " * 20}, "chat", "a picture in damaged base64"),
        ({"image": "[" + "_" * 90 + "(1)]"}, "chat", "a list that cannot be read"),
        ({"image_path": "[{[]: 1}]", "image": ""}, "chat", "a list that cannot be read"),
        ({"question": ""}, "chat", "no question"),
        ({"F": "six"}, "multiple_choice", "options A, B, F; A to E are read, in order"),
        ({}, "vqa", "options, which --form vqa does not have"),
    ],
)
def test_what_cannot_be_kept_is_counted(
    fields: dict[str, Any], form: str, reason: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    good = {**QUESTION, **CHOICES, "index": "1"}
    packed(tmp_path, [good, {**QUESTION, **CHOICES, **fields}], "--form", form)
    # Where nothing is left, an error says why.
    assert reason in "".join(capsys.readouterr())


def test_a_list_in_a_cell_is_no_program(tmp_path: Path) -> None:
    """VLMEvalKit evaluates such cells."""
    mark = tmp_path / "mark"
    cell = f"[open({str(mark)!r}, 'w').write('x' * 99)]"
    packed(tmp_path, [{**QUESTION, "index": "1"}, {**QUESTION, "image": cell}])
    assert not mark.exists()


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"index": "1", "image": FIRST}], "no column 'question'; it has index, image"),
        ([QUESTION, QUESTION], "the index '7' stands in several rows"),
    ],
)
def test_another_table_is_refused(
    rows: list[dict[str, str]], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert packed(tmp_path, rows) == []
    assert told in capsys.readouterr().err
