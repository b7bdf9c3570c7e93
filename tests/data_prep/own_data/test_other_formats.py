"""Files in other formats than rows: read if possible, else named with the command for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.cli import main
from tests.toys.own_rows import prepare
from tests.toys.shards import find_annotation, packed

ASKED = [
    {"from": "human", "value": "<image>\nWhat is it?"},
    {"from": "gpt", "value": "A dog."},
    {"from": "human", "value": "Which colour?"},
    {"from": "gpt", "value": "Brown"},
]
LLAVA: list[dict[str, Any]] = [
    {"id": "x1", "image": "a.jpg", "conversations": ASKED},
    {"id": "x2", "image": "b.jpg", "conversations": ASKED[:2]},
    {"id": "x3", "conversations": ASKED[2:]},
    {"id": "x4", "images": ["a.jpg", "b.jpg"], "conversations": ASKED[:2]},
    {"id": "x5", "image": "a.jpg", "conversations": ASKED[:1]},
    {"id": "x6", "image": "a.jpg", "conversations": [{"from": "human", "value": 3}]},
    {"id": "x7", "image": "a.jpg", "conversations": []},
]


@pytest.mark.parametrize("form", ["list", "lines", "indented"])
def test_conversations(form: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = {
        "list": json.dumps(LLAVA),
        "lines": "\n".join(map(json.dumps, LLAVA)),
        "indented": json.dumps(LLAVA, indent=1),
    }[form]
    assert prepare(folder, text, name="llava.json") == 0
    samples = packed(folder / "out")
    assert {key: len(sample.annotations) for key, sample in samples.items()} == {
        "a.jpg": 2,
        "b.jpg": 1,
    }
    first, second = samples["a.jpg"].annotations
    assert (first["question"], first["answers"]) == ("What is it?", ["a dog."])
    assert (second["question"], second["answers"]) == ("Which colour?", ["brown"])
    assert first["source"] == {"id": "x1"}
    if form != "indented":
        assert (first["id"], second["id"]) == ("1-0", "1-1")
    told = capsys.readouterr().out
    faults = ("no picture", "several pictures", "no question with an answer", "a turn without")
    for fault in (*faults, "question without an answer"):
        assert f"dropped: {fault}" in told


def test_rows_without_pictures_can_be_kept(folder: Path) -> None:
    assert prepare(folder, LLAVA, "--text-rows", "--id-field", "id", name="llava.json") == 0
    (alone,) = [s for key, s in packed(folder / "out").items() if key.startswith("row ")]
    assert (alone.id, alone.images) == ("row x3", ())
    assert [(a["id"], a["question"]) for a in alone.annotations] == [("x3", "Which colour?")]


def test_turns_without_a_counterpart_are_counted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoken = ("gpt hello", "human q3", "human q4", "gpt a4", "gpt a4b", "human q5", "gpt a5")
    words = [turn.split() for turn in (*spoken, "human q6")]
    turns = [{"from": speaker, "value": text} for speaker, text in words]
    rows = [{"id": "x", "image": "a.jpg", "conversations": turns}]
    assert prepare(folder, rows, "--id-field", "id", name="llava.json") == 0
    (sample,) = packed(folder / "out").values()
    assert {a["id"]: (a["question"], a["answers"]) for a in sample.annotations} == {
        "x-2": ("q4", ["a4"]),
        "x-4": ("q5", ["a5"]),
    }
    told = capsys.readouterr().out
    assert "6 in = 2 written + 4 dropped" in told
    assert "dropped: question without an answer: 2 (ids x-1, x-5)" in told
    assert "dropped: answer without a question: 2 (ids x-0, x-3)" in told


def test_a_turn_that_says_two_things_is_not_used(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = json.dumps(LLAVA).replace('"value": "Brown"', '"value": "Brown", "value": "Red"', 1)
    assert prepare(folder, text, name="llava.json") == 0
    assert "dropped: a turn with 'value' twice: 1 (id 1)" in capsys.readouterr().out


def test_conversations_without_an_id_are_named_by_their_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{key: value for key, value in row.items() if key != "id"} for row in LLAVA]
    assert prepare(folder, rows, "--id-field", "id", name="llava.json") == 0
    assert [a["id"] for a in packed(folder / "out")["a.jpg"].annotations] == ["1-0", "1-1"]
    assert "dropped: no picture: 1 (id 3)" in capsys.readouterr().out
    assert prepare(folder, [LLAVA[0] | {"id": None}], "--id-field", "id", name="l.json") == 2
    assert "'id' is null; expected text or a number" in capsys.readouterr().err


def test_messages_and_ids(folder: Path) -> None:
    said = [("system", "Be brief."), ("user", "What?"), ("assistant", "a dog"), ("user", "Who?")]
    turns = [{"role": who, "content": what} for who, what in [*said, ("assistant", "me")]]
    rows = [{"id": 7, "images": ["a.jpg"], "messages": turns}]
    assert prepare(folder, rows, "--id-field", "id", name="chat.json") == 0
    samples = packed(folder / "out")
    assert find_annotation(samples, "7-0")["question"] == "What?"
    assert find_annotation(samples, "7-1")["answers"] == ["me"]


def test_answers_of_conversations_can_be_captions(folder: Path) -> None:
    assert prepare(folder, LLAVA[1:2], task="caption", name="llava.json") == 0
    (sample,) = packed(folder / "out").values()
    assert [a["caption"] for a in sample.annotations] == ["A dog."]


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
def test_captions_of_coco(
    indent: int | None, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(folder, json.dumps(COCO, indent=indent), task="caption", name="c.json") == 0
    (sample,) = packed(folder / "out").values()
    assert [(a["id"], a["caption"]) for a in sample.annotations] == [
        ("50", "A dog."),
        ("51", "A cat."),
    ]
    assert "dropped: picture not in the file: 1 (id 52)" in capsys.readouterr().out


TWICE = COCO | {"images": [{"id": 5, "file_name": f"{name}.jpg"} for name in "ab"]}
BOXES = COCO | {"annotations": [{"id": 1, "image_id": 5, "bbox": [0, 0, 1, 1]}]}
QUESTIONS = {"task_type": "x", "questions": [{"question_id": 1}]}
SENTENCE = {"identifier": "dev-1-0-0", "sentence": "x", "label": "True"}


@pytest.mark.parametrize(
    ("content", "task", "told"),
    [
        (b"PAR1\x15\x04", "vqa", "is Parquet; write its pictures as files and its rows as JSON li"),
        (b"PK\x03\x04abc", "vqa", "is an Excel workbook or a ZIP archive; save it as CSV (UTF-8)"),
        (b"\x1f\x8b\x08", "vqa", "is compressed with gzip; unpack it"),
        ("a,b\n".encode("utf-16"), "vqa", "is UTF-16; save it as UTF-8"),
        (
            "image,question,answer\n".encode("utf-16-le"),
            "vqa",
            "rows looks like UTF-16 without a byte-order mark (it has zero bytes); save it as "
            "UTF-8: iconv -f UTF-16LE -t UTF-8 rows > NEW",
        ),
        ('{"image": 1}'.encode("utf-16-be"), "vqa", "iconv -f UTF-16BE -t UTF-8 rows > NEW"),
        (TWICE, "caption", "image 2: 'id' is 5, which 'a.jpg' has already; ids of images must be"),
        (COCO, "vqa", "is in COCO's form, which holds captions: give --task caption"),
        (BOXES, "caption", "has no captions (boxes, key points or segments are not read)"),
        (
            LLAVA,
            "entailment",
            "it looks like LLaVA's conversations, which `jsonl --task vqa` takes",
        ),
        (QUESTIONS, "vqa", "it looks like the questions of VQA v2, which `vqav2 --questions FILE`"),
        (SENTENCE, "vqa", "it looks like NLVR2, which `nlvr2 --annotations FILE` takes"),
        ({"7": {"imageId": "1", "question": "q"}}, "vqa", "like the questions of GQA, which `gqa"),
        ({"data": [{"image": "a"}]}, "vqa", "its rows seem to be in 'data': save that list as a"),
        (
            "Image,Ask,Answer\na,b,c\n",
            "vqa",
            "no field 'image'; did you mean 'Image'? it has Image",
        ),
        ("image,statement\na,b\n", "vqa", "it has image, statement, the form of --task statement"),
        ("image,Ask,Answer\na,b,c\n", "vqa", "Name the fields with --question-field and"),
    ],
)
def test_others_are_named_with_their_cure(
    content: Any, task: str, told: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(folder, content, task=task, name="rows") == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_a_folder_is_no_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "rows").mkdir()
    given = ["--annotations", str(folder / "rows"), "--images", str(folder / "photos")]
    assert main(["jsonl", "--task", "vqa", *given, "--out", str(folder / "out")]) == 2
    assert "rows is a folder; give the file of rows in it" in capsys.readouterr().err
