"""Pictures that are not there: all at once, with what they may mean; or left out and counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.toys.own_rows import photos, prepare, questions
from tests.toys.shards import packed

NEAR = {
    "beach/one.jpeg": "Beach/One.JPG",
    "Beach/two.png": "Beach/two.jpeg",
    "photos/Beach/two.jpeg": "Beach/two.jpeg",
    "my%20cat.jpg": "my cat.jpg",
    "my cat.HEIC": "my cat.jpg",
    "C:\\photos\\beach\\two.jpg": "Beach/two.jpeg",
    "two.jpeg": "Beach/two.jpeg",
}
NFC, NFD = "caf\u00e9", "cafe\u0301"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    near = dict.fromkeys(NEAR.values())
    photos(tmp_path / "photos", f"{NFC}.jpg", *near, "a.jpg", "Cat.jpg", "cat.jpg", "other/two.jpg")
    (tmp_path / "photos/Beach/two.txt").write_text("no picture")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "row"),
    [(NFC, NFD), (NFD, NFC), (f"{NFC}{NFD}", f"{NFD}{NFD}"), ("Dir/Cat", "dir\\CAT")],
)
def test_a_name_in_other_case_or_form_of_accents_is_its_file(
    name: str, row: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where the rows were written. One file under two spellings stays one picture."""
    photos(tmp_path / "photos", f"{name}.jpg")
    assert prepare(tmp_path, questions(f"{row}.JPG", row, f"{name}.jpg")) == 0
    (sample,) = packed(tmp_path / "out").values()
    assert len(sample.annotations) == 3
    told = f"are taken for it: 2, as {row}.JPG for {name}.jpg\n"
    assert told in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        (questions("a.jpg", "./a.png", "a.png"), "",
         "a.png is missing; line 3 of rows.csv names it. Did you mean a.jpg? Check --images, add "
         "the file, or leave its rows out with --skip-missing\n"),
        # Of two files in other case none is taken.
        (questions("CAT.jpg"), "", "CAT.jpg is missing; line 2 of rows.csv names it. Did"),
        (questions("a.jpg", "other"), "", "other is not a file; line 3 of rows.csv names it. It "
         "is a folder; name a picture in it. "),
        (questions("dog", "other"), "", "/other; it is a folder; name a picture in it.\n"),
        ("image,question,answer,part\nx,q,x,test\ny,q,x,train\n", "--split-field part",
         "2 of 2 pictures are missing"),
        (questions("a.jpg", "b.jpg"), "--images photo", "--images photo is not a folder; name the "
         "folder of the pi"),
        (questions("a.jpg"), "--annotations rows.cs",
         "rows.cs does not exist; did you mean 'rows.csv'?\n"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(
    rows: str, more: str, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch, refused: Any
) -> None:
    monkeypatch.chdir(folder)
    refused(prepare(folder, rows, *more.split()), message)


def test_they_can_be_left_out(
    folder: Path, capsys: pytest.CaptureFixture[str], refused: Any
) -> None:
    assert prepare(folder, questions("a.jpg", "dog", "./dog", "a.png"), "--skip-missing") == 0
    assert list(packed(folder / "out")) == ["a.jpg"]
    told = capsys.readouterr()
    assert "2 of 3 pictures are missing. Their rows are left out\n" in told.err
    assert "line 5: picture" in told.err
    assert "did you mean a.jpg?" in told.err
    assert "annotations         4 in = 1 written + 3 dropped" in told.out
    assert "dropped: picture: missing: 2 (ids " in told.out
    info = json.loads((folder / "out/dataset.json").read_text())
    assert {entry["id"] for entry in info["dropped"]} == {"dog", "a.png"}
    odd = questions("a.jpg", "a.jpg/b", "x" * 999, "a\0b")
    assert prepare(folder, odd, "--skip-missing") == 0
    told = capsys.readouterr()
    assert "dropped: picture: missing: 2 (ids " in told.out
    assert "control character in the picture's name: 1 (id 5)" in told.out
    code = prepare(folder, questions("dog"), "--skip-missing")
    refused(code, "no samples to write; the first dropped is ")
