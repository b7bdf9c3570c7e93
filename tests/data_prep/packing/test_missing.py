"""Pictures that are not there: all at once, with what they may mean; or left out and counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep.cli import main
from tests.toys.files import write
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
    photos(
        tmp_path / "photos", f"{NFC}.jpg", *dict.fromkeys(NEAR.values()), "a.jpg", "other/two.jpg"
    )
    (tmp_path / "photos/Beach/two.txt").write_text("no picture")
    return tmp_path


def test_all_are_named_at_once_with_near_names(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(folder, questions("a.jpg", *NEAR, "dog")) == 2
    told = capsys.readouterr().err
    assert told.startswith(
        "error: 8 of 9 pictures are missing. Check --images, add the files, or leave their rows "
        "out with --skip-missing\n"
    )
    for number, (name, meant) in enumerate(NEAR.items(), 3):
        place = f"  rows.csv, line {number}: picture {folder / 'photos' / name}"
        assert f"{place}; did you mean {meant}?\n" in told
    assert told.endswith(f"line 10: picture {folder / 'photos' / 'dog'}\n")
    assert not (folder / "out").exists()


def test_one_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(folder, questions("a.jpg", "./a.png", "a.png")) == 2
    assert (
        "a.png is missing; line 3 of rows.csv names it. Did you mean a.jpg? Check --images, add "
        "the file, or leave its rows out with --skip-missing\n"
    ) in capsys.readouterr().err
    user = {"role": "user", "content": [{"type": "image", "image": "x.jpg"}]}
    turns = [user, {"role": "assistant", "content": "red"}] * 2
    file = write(folder / "talks.json", [{"messages": turns}])
    out = ["--images", str(folder / "photos"), "--out", str(folder / "talks")]
    assert main(["chat", "--annotations", str(file), *out]) == 2
    assert "x.jpg is missing; line 1 of talks.json names it. " in capsys.readouterr().err


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


def test_of_two_files_in_other_case_none_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos(tmp_path / "photos", "Cat.jpg", "cat.jpg")
    assert prepare(tmp_path, questions("CAT.jpg")) == 2
    assert "CAT.jpg is missing; line 2 of rows.csv names it. Did" in capsys.readouterr().err


def test_a_folder_is_not_a_picture(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(folder, questions("a.jpg", "other")) == 2
    assert (
        "other is not a file; line 3 of rows.csv names it. It is a folder; name a picture in it. "
    ) in capsys.readouterr().err
    assert prepare(folder, questions("dog", "other")) == 2
    assert "/other; it is a folder; name a picture in it.\n" in capsys.readouterr().err


def test_a_long_list_is_cut(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(folder, questions("a.jpg", *(f"no{n}" for n in range(25)))) == 2
    told = capsys.readouterr().err
    assert "25 of 26 pictures are missing" in told
    assert told.endswith("  and 15 more\n")
    assert told.count("\n") == 12


def test_both_splits_are_looked_at(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "image,question,answer,part\nx,q,x,test\ny,q,x,train\n"
    assert prepare(folder, rows, "--split-field", "part") == 2
    assert "2 of 2 pictures are missing" in capsys.readouterr().err


def test_a_folder_or_a_file_that_is_not_there(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, images = folder / "rows.csv", str(folder / "photos")
    assert prepare(folder, questions("a.jpg", "b.jpg"), "--images", f"{images}s") == 2
    assert (
        f"--images {images}s is not a folder; name the folder of the pi" in capsys.readouterr().err
    )
    assert prepare(folder, questions("a.jpg"), "--annotations", f"{rows}"[:-1]) == 2
    assert "rows.cs does not exist; did you mean 'rows.csv'?\n" in capsys.readouterr().err


def test_they_can_be_left_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    assert prepare(folder, questions("dog"), "--skip-missing") == 2
    assert "no samples to write; the first dropped is " in capsys.readouterr().err
