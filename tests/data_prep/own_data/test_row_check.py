"""Labels: those of another task lead to it, and statements about one picture can be trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.toys.own_rows import prepare
from tests.toys.shards import packed
from vlds.data.shards.store import open_dataset
from vlds.tasks import VQA

STATEMENTS = """image,statement,label
a.jpg,It is red.,True
a.jpg,It is wide.,no
b.jpg,A cat.,0
b.jpg,A dog.,perhaps
"""


def test_statements_are_questions_with_two_answers(folder: Path, output: Any) -> None:
    assert prepare(folder, STATEMENTS, task="statement") == 0
    assert "dropped: label perhaps: 1 (id 5)" in output()
    dataset = open_dataset(str(folder / "out"))
    learnt = set()
    for number in range(dataset.num_samples):
        sample = dataset.read(number)
        for which in range(len(sample.annotations)):
            example = VQA().example("mine", sample, which, np.random.default_rng(0))
            learnt.add((example.prompt, example.target))
    assert learnt == {
        ("vqa: It is red.", "true"),
        ("vqa: It is wide.", "false"),
        ("vqa: A cat.", "false"),
    }


@pytest.mark.parametrize(
    ("task", "labels", "told"),
    [
        ("entailment", ["neutral", "True"], "line 3: 'label' is 'true', which --task entailment "
         "does not know (it takes entailment, neutral, contradiction); --task statement takes it"),
        ("statement", ["Entailment"], "line 2: 'label' is 'entailment', which --task statement "
         "does not know (it takes true, yes, 1, false, no, 0); --task entailment takes it"),
        ("entailment", ["supports", "2", "2"], "--task entailment knows no label in 'label': found "
         "'2' (2), 'supports' (1), and it takes entailment, neutral, contradiction. Other labels "
         "are answers to a question: --task vqa"),
    ],
)  # fmt: skip
def test_labels_of_another_task_name_it(
    task: str, labels: list[str], told: str, folder: Path, refused: Any
) -> None:
    rows = "image,said,label\n" + "".join(f"a.jpg,It is {x}.,{x}\n" for x in labels)
    refused(prepare(folder, rows, "--hypothesis-field", "said", task=task), told)


def test_the_column_of_statements_has_an_option(folder: Path) -> None:
    rows = STATEMENTS.replace("statement", "claim")
    assert prepare(folder, rows, "--statement-field", "claim", task="statement") == 0
    assert open_dataset(str(folder / "out")).num_annotations == 3


def test_false_and_zero_of_json_are_labels(folder: Path) -> None:
    rows = [{"image": "a", "statement": f"s{x}", "label": x} for x in (False, 0, True, 1)]
    assert prepare(folder, rows, task="statement", name="rows.json") == 0
    (sample,) = packed(folder / "out").values()
    assert [a["answers"] for a in sample.annotations] == [["false"], ["false"], ["true"], ["true"]]


def test_no_usable_row_says_why(folder: Path, refused: Any) -> None:
    code = prepare(folder, "image,question,answer\na,,x\na,q,\nb,q,\n")
    refused(code, "no usable sample for split 'train'; dropped: no answer: 2, no question: 1")
