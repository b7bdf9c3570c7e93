"""`own` tells what rows are, and runs the command for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_prep.cli import main
from tests.toys.files import json_lines, write
from tests.toys.own_rows import photos
from tests.toys.pictures import jpeg
from vlds.data.shards.info import DatasetInfo
from vlds.data.shards.sample import groups_of
from vlds.data.shards.store import open_dataset

NAMES = tuple(f"p{number:02}.jpg" for number in range(30))
COLOURS = ("red", "green", "blue")


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos", *NAMES)
    return tmp_path


def rows(head: str, *cells: str, separator: str = ",") -> str:
    """A table with a row for each picture; NAME, COLOUR and GROUP stand for what differs."""
    lines = [head]
    for number, name in enumerate(NAMES):
        line = separator.join(cells).replace("NAME", name)
        line = line.replace("COLOUR", COLOURS[number % 3]).replace("GROUP", f"g{number // 3}")
        lines.append(line.replace("NUMBER", str(number)))
    return "\n".join(lines) + "\n"


def own(file: Path, *more: str) -> int:
    return main(["own", "--data", str(file), "--images", "photos", "--out", "out", *more])


def packed() -> dict[str, DatasetInfo]:
    """The data set of each split."""
    files = Path("out").glob("*/dataset.json")
    return {file.parent.name: open_dataset(file.parent).info for file in files}


def sizes() -> dict[str, int]:
    """The samples of each split."""
    return {name: info.samples for name, info in packed().items()}


FORMS: tuple[tuple[str, str, str, str], ...] = (
    ("image,question,answer", "NAME,what is NUMBER?,COLOUR", "vqa", "jsonl --task vqa"),
    ("Datei,Frage,Antwort", "./NAME,Was ist NUMBER?,COLOUR", "vqa", "--question-field Frage"),
    ("q,file,a", "what NUMBER,NAME,COLOUR", "vqa", "--question-field q --answer-field a"),
    ("picture,species", "NAME,COLOUR", "image_class", "csv-classes"),
    ("picture,found", "NAME,COLOUR", "image_class", "--label-field found"),
    ("picture,caption", "NAME,a COLOUR thing of NUMBER", "caption", "--caption-field caption"),
    ("picture,words", "NAME,a COLOUR thing of NUMBER", "caption", "--caption-field words"),
    ("picture,statement,label", "NAME,it is COLOUR,true", "vqa", "--task statement"),
    ("picture,claim,label", "NAME,it is COLOUR,neutral", "entailment", "--task entailment"),
)


@pytest.mark.parametrize(("head", "cells", "kind", "command"), FORMS, ids=lambda text: text)
def test_tables(head: str, cells: str, kind: str, command: str, desk: Path, output: Any) -> None:
    assert own(write(desk / "rows.csv", rows(head, cells))) == 0
    said = output()
    assert command in said
    assert {info.kind for info in packed().values()} == {kind}
    assert sizes().keys() == {"train", "val", "test"}
    assert sum(sizes().values()) == len(NAMES)


def test_few_groups_are_drawn_by_a_seed_that_divides_them_well(desk: Path) -> None:
    """Ten patients, two for each of val and test; the first seed may draw five."""
    table = write(desk / "rows.csv", rows("image,caption,patient", "NAME,a thing of NUMBER,GROUP"))
    for seed in ("0", "40", "80"):
        assert own(table, "--group-field", "patient", "--seed", seed) == 0
        assert sizes() == {"train": 18, "val": 6, "test": 6}


def test_splits_of_the_rows_are_kept(desk: Path, output: Any) -> None:
    table = rows("image,question,answer,split,patient", "NAME,what?,COLOUR,PART,GROUP")
    lines = table.splitlines()
    parts = ["train"] * 20 + ["dev"] * 5 + ["test"] * 5
    lines[1:] = [line.replace("PART", part) for line, part in zip(lines[1:], parts, strict=True)]
    table = "\n".join(lines)
    for more in ([], ["--group-field", "patient"]):
        assert own(write(desk / "rows.csv", table), *more) == 0
        assert sizes() == {"train": 20, "dev": 5, "test": 5}
        assert "'patient': 2 of 10 are in several splits, as " in output()
        dataset = open_dataset("out/test")
        kept = {name for n in range(5) for _, name in groups_of(dataset.read(n))}
        assert kept == ({"g8", "g9"} if more else set())


def talk(name: str) -> dict[str, Any]:
    turns = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "It."}]
    return {"images": [name], "messages": turns}


def test_conversations_and_folders(desk: Path) -> None:
    assert own(write(desk / "talks.jsonl", json_lines(map(talk, NAMES)))) == 0
    assert packed()["train"].kind == "chat"
    for number in range(12):
        write(desk / "kinds" / COLOURS[number % 3] / f"{number}.jpg", jpeg(width=20 + number))
    assert main(["own", "--data", "kinds", "--out", "classes"]) == 0
    assert open_dataset(Path("classes/train")).info.classes == ("blue", "green", "red")


CELLS = "NAME,what is NUMBER,COLOUR and NUMBER,COLOUR"
MISTAKES: tuple[tuple[str | bytes, str, str], ...] = (
    (rows("image,question,one,two", CELLS), "",
     "'question' holds questions; name the answers, as in --answer-"),
    (rows("image,one,two,three", CELLS), "",
     "--caption-field, or --label-field three, whose cells recur"),
    (rows("patient,image,found,age", "GROUP,NAME,COLOUR,NUMBER"), "",  # groups are no classes
     "or --label-field found, whose cells recur"),
    (rows("question,answer", "what?,COLOUR"), "",
     "no column names pictures below photos; it has question, answer"),
    # Files that are not read are named by the user's option, not by that of the command for rows.
    (b"PK\x03\x04", "", "--data rows.csv is an Excel workbook"),
)  # fmt: skip


@pytest.mark.parametrize(("table", "more", "message"), MISTAKES, ids=[row[2] for row in MISTAKES])
def test_what_is_not_clear_is_asked(
    table: str | bytes, more: str, message: str, desk: Path, refused: Any
) -> None:
    write(desk / "rows.csv", table)
    refused(own(Path("rows.csv"), *more.split()), message)
    assert not Path("out").exists()


def test_numbers_are_no_pictures_where_a_column_names_files(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bare number may be a picture's name without its ending, and so may a row's number."""
    photos(desk / "photos", *(f"{number}.jpg" for number in range(30)))
    lines = [f"{n},{(n + 7) % 30}.jpg,what is {(n + 7) % 30}?,a" for n in range(30)]
    assert own(write(desk / "r.csv", "\n".join(["id,image,question,answer", *lines]))) == 0
    assert "--image-field image " in capsys.readouterr().out
    for head, status in (("age,photo,question,answer", 0), ("age,weight,question,answer", 2)):
        bare = [line.replace(".jpg", "") for line in lines]
        assert own(write(desk / "r.csv", "\n".join([head, *bare]))) == status
        said = capsys.readouterr()
        assert "--image-field photo" in said.out or "'age' and 'weight' may all name" in said.err


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        (["train"] * 20 + ["Train"] * 5 + ["test"] * 5, "calls one split 'train' and 'Train'"),
        (["val"] * 20 + ["dev"] * 5 + ["test"] * 5, "calls one split 'val' and 'dev', which"),
        (["train"] * 20 + [""] * 5 + ["test"] * 5, "names no split in 5 of 30 rows; give each"),
    ],
)
def test_a_split_has_one_name(parts: list[str], told: str, desk: Path, refused: Any) -> None:
    lines = [
        {"image": name, "question": "what?", "answer": "x", "split": part}
        for name, part in zip(NAMES, parts, strict=True)
    ]
    refused(own(write(desk / "rows.jsonl", json_lines(lines))), told)


def test_conversations_and_tables_keep_their_splits(desk: Path, output: Any, refused: Any) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    def parquet(name: str, rows: list[dict[str, Any]]) -> Path:
        pq.write_table(pa.Table.from_pylist(rows), desk / name)
        return desk / name

    parts = ["train"] * 20 + ["val"] * 5 + ["test"] * 5
    talks = [talk(name) | {"split": part} for name, part in zip(NAMES, parts, strict=True)]
    expected = {"train": 20, "val": 5, "test": 5}
    assert own(write(desk / "talks.jsonl", json_lines(talks))) == 0
    assert sizes() == expected
    labels = parquet("labels.parquet", [{"image": {"path": name}, "label": 0} for name in NAMES])
    told = "without conversations or questions; it has image, label. Write its pictures as"
    refused(own(labels), told)
    asked = [{"image": name, "prompt": "What?", "response": "It."} for name in NAMES]
    assert own(parquet("asked.parquet", asked), "--out", "asked") == 0
    assert "--question-field prompt" in output()
    assert own(parquet("talks.parquet", talks), "--split-field", "split") == 0
    assert sizes() == expected
    (desk / "data").mkdir()
    for part in expected:
        some = [{**row, "split": None} for row in talks if row["split"] == part]
        parquet(f"data/{part}-00000-of-00001.parquet", some)
    assert own(desk / "data", "--name", "talks") == 0
    assert sizes() == expected


def test_zero_is_a_name(desk: Path) -> None:
    """A patient or class may be called 0."""
    lines = [{"image": name, "label": n % 2, "patient": n // 3} for n, name in enumerate(NAMES)]
    table = write(desk / "rows.jsonl", json_lines(lines))
    words = ["csv-classes", "--annotations", str(table), "--images", "photos", "--out", "out"]
    more = ["--label-field", "label", "--image-field", "image", "--group-field", "patient"]
    assert main([*words, *more, "--split-sizes", "test=0.4"]) == 0
    for part in ("train", "test"):
        data = open_dataset(Path("out") / part)
        assert all(groups_of(data.read(number)) for number in range(data.num_samples))
