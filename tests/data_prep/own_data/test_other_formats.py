"""Files in other formats than rows: read if possible, else named with the command for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.cli import main
from tests.toys.own_rows import prepare
from tests.toys.shards import packed

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
SENTENCE = {"identifier": "dev-1-0-0", "sentence": "x", "label": "True"}


@pytest.mark.parametrize(
    ("content", "task", "told"),
    [
        (b"PAR1\x15\x04", "vqa", "is Parquet; write its pictures as files and its rows as JSON li"),
        (b"PK\x03\x04abc", "vqa", "is an Excel workbook or a ZIP archive; save it as CSV (UTF-8)"),
        (b"\x1f\x8b\x08", "vqa", "is compressed with gzip; unpack it"),
        ("a,b\n".encode("utf-16") + b"x", "vqa", "begins as UTF-16 and goes on otherwise; save"),
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
        (LLAVA, "vqa", "like conversations of LLaVA or ShareGPT, which `chat --annotations FILE`"),
        ({"instruction": "a", "output": "b"}, "caption", "which `chat --annotations FILE` takes"),
        (QUESTIONS, "vqa", "it looks like the questions of VQA v2, which `vqav2 --questions FILE`"),
        (SENTENCE, "vqa", "it looks like NLVR2, which `nlvr2 --annotations FILE` takes"),
        ({"7": {"imageId": "1", "question": "q"}}, "vqa", "like the questions of GQA, which `gqa"),
        ({"data": [{"image": "a"}]}, "vqa", "its rows seem to be in 'data': save that list as a"),
        ("Image,Ask,Answer\na,b,c\n", "vqa",
         "no field 'image'; did you mean 'Image'? it has Image"),
        ("image,statement\na,b\n", "vqa", "it has image, statement, the form of --task statement"),
        ("image,Ask,Answer\na,b,c\n", "vqa", "Name the fields with --question-field and"),
    ],
)  # fmt: skip
def test_others_are_named_with_their_cure(
    content: Any, task: str, told: str, folder: Path, refused: Any
) -> None:
    error = refused(prepare(folder, content, task=task, name="rows"), told)
    assert error.count("\n") == 1


def test_a_folder_is_no_file(folder: Path, refused: Any) -> None:
    (folder / "rows").mkdir()
    given = ["--annotations", str(folder / "rows"), "--images", str(folder / "photos")]
    code = main(["jsonl", "--task", "vqa", *given, "--out", str(folder / "out")])
    refused(code, "rows is a folder; give the file of rows in it")
