"""Rows name pictures in the folder that the user gives, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_prep.cli import main
from tests.toys.files import json_lines, write
from tests.toys.own_rows import pack_rows
from tests.toys.pictures import jpeg
from tests.toys.shards import packed


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A private picture, outside the folder of pictures but linked into it."""
    images = tmp_path / "data" / "images"
    write(images / "a.jpg", jpeg())
    secret = write(tmp_path / "private" / "secret.jpg", jpeg())
    (images / "link.jpg").symlink_to(secret)
    (images / "folder").symlink_to(secret.parent)
    (images / "b.jpg").symlink_to(images / "a.jpg")
    return secret


def prepare(folder: Path, *names: str, more: tuple[str, ...] = ()) -> int:
    rows = [{"image": n, "question": "what?", "answer": "x"} for n in ("a.jpg", "b.jpg", *names)]
    write(folder / "rows.jsonl", json_lines(rows))
    images = folder / "data" / "images"
    return pack_rows(folder / "rows.jsonl", images, folder / "out", *more)


@pytest.mark.parametrize(
    "name",
    ["../../private/secret.jpg", "/private/secret.jpg", "link.jpg", "folder/secret", "./../images/"
     "../../private/secret.jpg"],
)  # fmt: skip
def test_rows_do_not_leave_it(
    name: str, secret: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if name.startswith("/"):
        name = str(secret)
    assert prepare(tmp_path, name) == 2
    told = capsys.readouterr().err
    assert f"{secret.stem}" in told or "link.jpg" in told
    assert f"is outside {tmp_path / 'data' / 'images'}; line 3 of rows.jsonl names it" in told
    assert "--images-anywhere if you trust the rows" in told
    assert not (tmp_path / "out").exists()
    assert prepare(tmp_path, name, more=("--images-anywhere",)) == 0
    assert len(packed(tmp_path / "out")) == 2  # a.jpg, to which b.jpg leads, and the other


def test_links_within_it_are_fine(secret: Path, tmp_path: Path) -> None:
    assert prepare(tmp_path) == 0


def test_official_files_do_not_leave_it_either(secret: Path, tmp_path: Path, refused: Any) -> None:
    told = [{"sentid": 7, "raw": "A dog."}]
    row = {"split": "val", "cocoid": 1, "filename": "secret.jpg", "sentences": told}
    row["filepath"] = "../../private"
    write(tmp_path / "data" / "dataset_coco.json", {"images": [row]})
    images = str(tmp_path / "data" / "images")
    command = ["coco-karpathy", "--src", str(tmp_path / "data"), "--split", "val"]
    code = main([*command, "--images", images, "--out", str(tmp_path / "out")])
    refused(code, f"is outside {images}; annotation 7 of dataset_coco.json")
