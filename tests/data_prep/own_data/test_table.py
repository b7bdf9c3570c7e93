"""Tables as people and spreadsheets write them: where a row is, and what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.own_data.rows import read_rows
from tests.toys.files import write
from tests.toys.own_rows import prepare
from tests.toys.shards import packed

HEAD = "image,question,answer\n"


def rows(folder: Path, content: str | bytes, name: str = "t.csv") -> list[tuple[str, list[object]]]:
    read = read_rows(write(folder / name, content))
    return [(row.place, list(row.fields.values())) for row in read]


def test_rows_are_named_by_the_line_an_editor_shows(tmp_path: Path) -> None:
    text = '\n\nimage,question,answer\r\na,"two\r\nlines",x\r\n\r\n,,\r\nb,q,"y\n\n"\r\nc,q,z'
    assert [place for place, _ in rows(tmp_path, text)] == ["line 4", "line 8", "line 11"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])  # which Excel calls Unicode text
def test_what_spreadsheets_add_is_not_data(encoding: str, tmp_path: Path) -> None:
    text = 'sep=;\r\nimage; question ;answer;;\r\na;q, r;x;;\r\n;;;;\r\nb; "q; r";x\r\n'
    expected = [("line 3", ["a", "q, r", "x"]), ("line 5", ["b", "q; r", "x"])]
    assert rows(tmp_path, text.encode(encoding)) == expected
    assert list(read_rows(tmp_path / "t.csv")[0].fields) == ["image", "question", "answer"]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (HEAD + 'a,q,x\nb,"q,x\n' + "c,q,x\n" * 50000,
         "line 3: a quote opens a cell and is not closed; close it, and double the quotes"),
        (HEAD + 'a,q,x\nb,"so "called" q",x\n', "line 3: text after a closing quote; double"),
        (
            HEAD + "a,q,x\n\nb,q, r,x\n",
            "line 4: 4 cells, but the head line has 3 (image, question, answer); put cells that "
            "hold a ',' in quotes",
        ),
        (
            HEAD + "a,q\nb,q,x\nc\nd,q\n",
            "  line 2, line 5: 2 cells, but the head line has 3 (image, question, answer); add the "
            "missing ones\n  line 4: 1 cell, but",
        ),
        (
            HEAD + 'a,"q,x\nb,q",x,y,z\n',
            "line 2: 5 cells, but the head line has 3 (image, question, answer); a quoted cell "
            "continues to line 3: should its quote close earlier?",
        ),
        (HEAD + f"a,q,x\nb,{'q' * 200_000},x\n",
         "line 3: 'question' has more than 131,072 characters; shorten it, or remove the row"),
        ("image\tq\tq\na\tb\tc\n", "line 1: two columns are called 'q'; rename one"),
    ],
)  # fmt: skip
def test_the_line_at_fault_is_named(content: str, fault: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line") as caught:
        rows(tmp_path, content)
    assert f"t.csv, {fault}" in str(caught.value).replace("t.csv:\n", "t.csv, ")


def test_commas_between_json_lines_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a comma follows the first row; JSON lines have no"):
        rows(tmp_path, '{"a": 1},\n{"a": 2}\n', "t.json")


# Files in other formats than rows: read if possible, else named with the command for them.

TALK = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A dog."}]
LLAVA: list[dict[str, Any]] = [{"id": "x1", "image": "a.jpg", "conversations": TALK}]


COCO = {
    "info": {},
    "images": [{"id": 5, "file_name": "a.jpg"}, {"id": 6, "file_name": "b.jpg"}],
    "annotations": [
        {"id": 50, "image_id": 5, "caption": "A dog. "},
        {"id": 51, "image_id": 5, "caption": "A cat."},
        {"id": 52, "image_id": 9, "caption": "Lost."},
    ],
}


@pytest.mark.parametrize("indent", [None, 1])
def test_captions_of_coco(indent: int | None, folder: Path, output: Any) -> None:
    assert prepare(folder, json.dumps(COCO, indent=indent), task="caption", name="c.json") == 0
    (sample,) = packed(folder / "out").values()
    assert [(a["id"], a["caption"]) for a in sample.annotations] == [
        ("50", "A dog."),
        ("51", "A cat."),
    ]
    assert "dropped: picture not in the file: 1 (id 52)" in output()


TWICE = COCO | {"images": [{"id": 5, "file_name": f"{name}.jpg"} for name in "ab"]}
BOXES = COCO | {"annotations": [{"id": 1, "image_id": 5, "bbox": [0, 0, 1, 1]}]}
QUESTIONS = {"task_type": "x", "questions": [{"question_id": 1}]}


@pytest.mark.parametrize(
    ("content", "task", "told"),
    [
        (b"PK\x03\x04abc", "vqa", "is an Excel workbook or a ZIP archive; save it as CSV (UTF-8)"),
        (
            "image,question,answer\n".encode("utf-16-le"),
            "vqa",
            "rows looks like UTF-16 without a byte-order mark (it has zero bytes); save it as "
            "UTF-8: iconv -f UTF-16LE -t UTF-8 rows > NEW",
        ),
        (TWICE, "caption", "image 2: 'id' is 5, which 'a.jpg' has already; ids of images must be"),
        (COCO, "vqa", "is in COCO's form, which holds captions: give --task caption"),
        (BOXES, "caption", "has no captions (boxes, key points or segments are not read)"),
        (LLAVA, "vqa", "like conversations of LLaVA or ShareGPT, which `chat --annotations FILE`"),
        (QUESTIONS, "vqa", "it looks like the questions of VQA v2, which `vqav2 --questions FILE`"),
        ("Image,Ask,Answer\na,b,c\n", "vqa",
         "no field 'image'; did you mean 'Image'? it has Image"),
        ("image,statement\na,b\n", "vqa", "it has image, statement, the form of --task statement"),
    ],
)  # fmt: skip
def test_others_are_named_with_their_cure(
    content: Any, task: str, told: str, folder: Path, refused: Any
) -> None:
    error = refused(prepare(folder, content, task=task, name="rows"), told)
    assert error.count("\n") == 1


# Labels: those of another task lead to it, and statements about one picture can be trained on.

STATEMENTS = """image,statement,label
a.jpg,It is red.,True
a.jpg,It is wide.,no
b.jpg,A cat.,0
b.jpg,A dog.,perhaps
"""


def test_statements_are_questions_with_two_answers(folder: Path, output: Any) -> None:
    assert prepare(folder, STATEMENTS, task="statement") == 0
    assert "dropped: label perhaps: 1 (id 5)" in output()
    samples = packed(folder / "out").values()
    found = {(a["question"], *a["answers"]) for sample in samples for a in sample.annotations}
    assert found == {("It is red.", "true"), ("It is wide.", "false"), ("A cat.", "false")}
    assert {sample.kind for sample in samples} == {"vqa"}


def test_false_and_zero_of_json_are_labels(folder: Path) -> None:
    rows = [{"image": "a", "statement": f"s{x}", "label": x} for x in (False, 0, True, 1)]
    assert prepare(folder, rows, task="statement", name="rows.json") == 0
    (sample,) = packed(folder / "out").values()
    assert [a["answers"] for a in sample.annotations] == [["false"], ["false"], ["true"], ["true"]]
