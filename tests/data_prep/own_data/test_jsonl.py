"""One's own data: three forms of rows, fields by name, splits by picture, telling errors."""

from __future__ import annotations

import csv
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from data_prep.packing.splits import HashSplit
from tests.toys import own_rows
from tests.toys.files import write
from tests.toys.own_rows import pack_rows, photos
from tests.toys.pictures import jpeg
from tests.toys.shards import find_annotation, packed
from vlds.data.shards.store import open_dataset
from vlds.schema import LONGEST_TEXT

ROWS: list[dict[str, Any]] = [
    {"file": "a.jpg", "ask": "Is it\n red? ", "say": " Yes ", "answer_type": "CLOSED ", "in": "Q"},
    {"file": "a.jpg", "ask": "How many?", "say": 3, "answer_type": "OPEN", "in": "HEAD"},
    {"file": "b", "ask": "What, then?", "say": "a cat, asleep", "answer_type": "OPEN", "in": "Q"},
]  # fmt: skip
FIELDS = ["--image-field", "file", "--question-field", "ask", "--answer-field", "say"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for width, name in enumerate("abcdefghij", 30):
        write(tmp_path / "photos" / f"{name}.jpg", jpeg(width=width))
    return tmp_path


prepare = partial(own_rows.prepare, name="rows.json")


def as_csv(rows: list[dict[str, Any]], path: Path, **options: Any) -> Path:
    with path.open("w", newline="", encoding="utf-8-sig") as file:  # as spreadsheets save it
        writer = csv.DictWriter(file, list(rows[0]), **options)
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize(
    "form", ["lines", "list", "csv", "tsv", "csv without extension", "spreadsheet"]
)
def test_three_forms_give_the_same_samples(form: str, folder: Path) -> None:
    lines = "\n".join(map(json.dumps, ROWS))
    path = {
        "lines": lambda: write(folder / "rows.jsonl", lines),
        "list": lambda: write(folder / "rows.json", ROWS),
        "csv": lambda: as_csv(ROWS, folder / "rows.csv"),
        "tsv": lambda: as_csv(ROWS, folder / "rows.tsv", delimiter="\t"),
        "csv without extension": lambda: as_csv(ROWS, folder / "rows"),
        "spreadsheet": lambda: as_csv(ROWS, folder / "rows.csv", delimiter=";"),
    }[form]()
    assert pack_rows(path, folder / "photos", folder / "out", *FIELDS) == 0
    samples = packed(folder / "out")
    assert sorted(samples) == ["a.jpg", "b.jpg"]
    first, second, third = ("1", "2", "3") if form in ("lines", "list") else ("2", "4", "5")
    assert find_annotation(samples, first) == {
        "id": first,
        "question": "Is it red?",
        "answers": ["Yes"],
        "label": {"Yes": 1.0},
        "answer_type": "CLOSED",
        "source": {"in": "Q"},
    }
    assert find_annotation(samples, second)["answers"] == ["3"]
    assert find_annotation(samples, third)["label"] == {"a cat, asleep": 1.0}


def test_an_empty_answer_counts_as_one_of_ten_only(folder: Path, output: Any) -> None:
    """In VQA v2 a person may have answered nothing."""
    lists = [["cat"] * 7 + ["", "dog", "dog"], ["cat"] * 8 + [None, "dog"], ["cat", ""], [""] * 10]
    rows = [{"image": "a.jpg", "question": f"q{n}", "answer": a} for n, a in enumerate(lists)]
    assert prepare(folder, rows) == 0
    (sample,) = packed(folder / "out").values()
    (question,) = sample.annotations
    assert question["answers"] == lists[0]
    assert question["label"] == {"cat": 1.0, "dog": 0.6}
    printed = output()
    assert "4 in = 1 written + 3 dropped" in printed
    assert "empty answer in a list: 2 (ids 2, 3)" in printed
    assert "no answer: 1 (id 4)" in printed


def test_ids_repeat_in_other_splits_and_in_dropped_rows(folder: Path) -> None:
    rows = "image,question,answer,key,part\na,q,x,1,train\na,q,,1,train\nb,q,x, 1 ,test\n"
    more = ("--id-field", "key", "--split-field", "part")
    assert prepare(folder, rows, *more, name="rows.csv") == 0
    for part in ("train", "test"):
        (sample,) = packed(folder / "out" / part).values()
        assert [a["id"] for a in sample.annotations] == ["1"]


def test_captions(folder: Path) -> None:
    rows = [
        {"image": "a.jpg", "text": "A cat.", "page": 3},
        {"image": "a.jpg", "text": ["Two  cats.", "", "Cats."]},
        {"image": "b.jpg", "text": ""},
    ]
    assert prepare(folder, rows, "--caption-field", "text", task="caption") == 0
    samples = packed(folder / "out")
    assert list(samples["a.jpg"].annotations) == [
        {"id": "1", "caption": "A cat.", "source": {"page": 3}},
        {"id": "2-0", "caption": "Two cats."},
        {"id": "2-1", "caption": "Cats."},
    ]
    info = json.loads((folder / "out/dataset.json").read_text())
    assert info["dropped"] == [{"id": row, "reason": "no caption"} for row in ("2", "3")]


def test_sentences_to_judge(folder: Path) -> None:
    rows = [
        {"file": "a.jpg", "claim": "It is\n red.", "verdict": " Entailment", "page": 3},
        {"file": "a.jpg", "claim": "It is wide.", "verdict": "neutral"},
        {"file": "b", "claim": "A cat.", "verdict": "contradiction"},
        {"file": "b", "claim": "A dog.", "verdict": "-"},
        {"file": "b", "claim": "", "verdict": "neutral"},
    ]
    fields = ["--image-field", "file", "--hypothesis-field", "claim", "--label-field", "verdict"]
    assert prepare(folder, rows, *fields, task="entailment") == 0
    assert open_dataset(str(folder / "out")).kind == "entailment"
    assert json.loads((folder / "out/dataset.json").read_text())["dropped"] == [
        {"id": "4", "reason": "label -"},
        {"id": "5", "reason": "no hypothesis"},
    ]
    samples = packed(folder / "out")
    assert {key: list(sample.annotations) for key, sample in samples.items()} == {
        "a.jpg": [
            {"id": "1", "hypothesis": "It is red.", "label": "entailment", "source": {"page": 3}},
            {"id": "2", "hypothesis": "It is wide.", "label": "neutral"},
        ],
        "b.jpg": [{"id": "3", "hypothesis": "A cat.", "label": "contradiction"}],
    }
    more = [*fields[:4], "--no-answers", "--split", "test", "--out", str(folder / "test")]
    assert prepare(folder, rows, *more, task="entailment") == 0
    assert "label" not in find_annotation(packed(folder / "test"), "4")


def test_unusable_rows_are_counted(folder: Path, output: Any) -> None:
    rows = [
        {"image": "a.jpg", "question": "q", "answer": "x"},
        {"image": "a.jpg", "question": " ", "answer": "x"},
        {"image": "b.jpg", "question": "q", "answer": None},
        {"image": None, "question": "q", "answer": "x"},
        {"question": "q", "answer": "x"},
        {"image": "no\ud800.jpg", "question": "q", "answer": "x"},
        {"image": "a.jpg", "question": "wh\ud800t?", "answer": "x"},
        {"image": "a.jpg", "question": "x " * LONGEST_TEXT, "answer": "x"},
    ]
    assert prepare(folder, rows) == 0
    printed = output()
    assert "8 in = 1 written + 7 dropped" in printed
    for reason in (
        "no question: 1", "no answer: 1", "no image: 2", "half of a character in a text: 2",
        "question of more than 100,000 characters: 1 (id 8)",
    ):  # fmt: skip
        assert reason in printed


def test_split_by_image(folder: Path) -> None:
    rows = [
        {"image": f"{name}.jpg", "question": f"q{number}", "answer": "x"}
        for number in range(3)
        for name in "abcdefghij"
    ]
    rows.append({"image": "\ud800.jpg", "question": "q", "answer": "x"})  # dropped
    for out in ("one", "two"):
        assert prepare(folder, rows, "--split-by-image", "0.4", "--out", str(folder / out)) == 0
    test, train = packed(folder / "one/test"), packed(folder / "one/train")
    assert not test.keys() & train.keys()
    assert len(test) + len(train) == 10
    assert all(len(sample.annotations) == 3 for sample in (*test.values(), *train.values()))
    assert packed(folder / "two/test").keys() == test.keys()


def test_hash_split_keeps_its_share_and_depends_on_the_seed() -> None:
    names = [f"{number}.jpg" for number in range(2000)]
    one, two = (
        {name for name in names if HashSplit({"test": 0.2}, seed).of(name) == "test"}
        for seed in (1, 2)
    )
    assert 330 < len(one) < 470
    assert one != two


ROW = {"image": "a.jpg", "question": "q", "answer": "x"}


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        ([{"img": "a.jpg"}], (), "line 1: no field 'image'; did you mean 'img'? it has img. Name"),
        ([], (), "no rows"),
        ([{"question": "q"}], (), "options; --text-rows keeps rows without pictures"),
        ([ROW | {"image": ["a.jpg", "b.jpg"]}], ("--text-rows",),
         '\'image\' is ["a.jpg", "b.jpg"]; expected text or a number'),
        ('{"image": "a.jpg"}\n{"image"', (), "line 2: not JSON"),
        ('[{"image": "é"}]'.encode("latin-1"), (), "(byte 0xe9 in line 1); save it as UTF-8"),
        ('{"image": "é"}'.encode("latin-1"), (), "(byte 0xe9 in line 1); save it as UTF-8"),
        ([ROW | {"answer": {"a": 1}}], (),
         "line 1: 'answer' is {\"a\": 1}; expected text, a number"),
        ('{"image": "a.jpg"}\n{"image": "a.jpg", "question": "q", "answer": NaN}', (),
         "rows.json, line 2: NaN is not a number; give a finite one, text or null"),
        ([ROW | {"part": "../x"}], ("--split-field", "part"), "split '../x': it becomes part"),
        ([ROW | {"key": None}], ("--id-field", "key"), "line 1: 'key' is null; expected text or"),
        ("image,question,answer,key\na,q,x,1\na,r,x,2\nb,q,x,1 \nb,r,x, 2\n", ("--id-field", "key"),
         "rows.json, line 2 and line 4: 'key' is '1' in both (and 1 more such row); ids must b"),
        ('{"image": "a", "question": "q", "answer": "x"}\n{"image": "a", "a": 1, "a": 2}\n', (),
         "rows.json, line 2: the object has 'a' twice; keep one of them"),
        ('{"image": "a"}\n{"image": "b"} {"image": "c"}\n', (),
         "rows.json, line 2: not JSON: Extra data: column 16; write one object per line,"),
        ([ROW], ("--workers", "0"), "--workers: got 0; give 1 or more"),
        ([ROW], ("--name", "a.b"), "without dots"),
        ([ROW], ("--split-by-image", "0.5"), "leaves no"),
    ],
)  # fmt: skip
def test_errors_are_one_line_and_code_2(
    content: Any, more: tuple[str, ...], message: str, folder: Path, refused: Any
) -> None:
    write(folder / "rows.json", content)
    there = sorted(path.name for path in folder.iterdir())
    error = refused(prepare(folder, content, *more), message)
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not list(folder.glob("out/*"))
    assert sorted(path.name for path in folder.iterdir() if path.name != "out") == there


def test_types_of_questions(folder: Path) -> None:
    """Those of the rows, of which null is none; else few questions that recur are types."""
    assert prepare(folder, [ROW | {"answer_type": None, "question_type": "what"}]) == 0
    found = find_annotation(packed(folder / "out"), "1")
    assert "answer_type" not in found
    assert found["question_type"] == "what"
    for times, types in ((20, ["Is it?", "What?"]), (19, [None, None])):
        asked = [{"image": "a", "question": q, "answer": "x"} for q in ("Is it?", "What?") * times]
        assert prepare(folder, asked) == 0
        samples = packed(folder / "out")
        assert [find_annotation(samples, id).get("question_type") for id in ("1", "2")] == types


def test_another_seed_is_another_order(folder: Path) -> None:
    """Of the samples in the shards, which are the same ones."""
    rows = [{"image": name, "caption": name} for name in "abcdefghij"]
    orders = []
    for seed in ("0", "7", "7"):
        assert prepare(folder, rows, "--seed", seed, task="caption") == 0
        orders.append(list(packed(folder / "out")))
    assert orders[0] != orders[1] == orders[2]
    assert sorted(orders[0]) == sorted(orders[1]) == [f"{name}.jpg" for name in "abcdefghij"]


def test_an_output_with_other_files_is_refused(tmp_path: Path, refused: Any) -> None:
    """Shards would mix with the pictures, or with other data sets."""
    images = photos(tmp_path / "photos", "a.jpg")
    for out, held in ((images, "a.jpg"), (tmp_path, "photos, rows.json")):
        code = prepare(tmp_path, [ROW], "--out", str(out))
        refused(code, f"--out: {out} holds other files ({held})")
    assert [path.name for path in images.iterdir()] == ["a.jpg"]


def test_rows_of_a_group_stay_in_one_split(folder: Path, refused: Any) -> None:
    rows = [
        {"image": f"{letter}.jpg", "question": "q", "answer": "x", "patient": f"p{number // 3}"}
        for number, letter in enumerate("abcdefghi")
    ]
    words = ("--split-sizes", "val=0.3", "test=0.3", "--group-field", "patient", "--seed", "3")
    assert prepare(folder, rows, *words) == 0
    groups = [
        {a["source"]["patient"] for s in packed(folder / "out" / split).values()
         for a in s.annotations}
        for split in ("train", "val", "test")
    ]  # fmt: skip
    assert sorted(patient for found in groups for patient in found) == ["p0", "p1", "p2"]
    code = prepare(folder, [*rows[:2], rows[2] | {"patient": None}], *words)
    refused(code, "row 3: 'patient' is empty; give each row its group")
