"""A user's own pictures and rows, and the command that packs them."""

from __future__ import annotations

from pathlib import Path

from data_prep.cli import main
from tests.toys.files import write
from tests.toys.pictures import jpeg


def photos(folder: Path, *names: str) -> Path:
    """Pictures that all differ."""
    for width, name in enumerate(names, 30):
        write(folder / name, jpeg(width=width))
    return folder


def pack_rows(rows: Path, images: Path, out: Path, *more: str, task: str = "vqa") -> int:
    """Pack a file of rows about the pictures of a folder; the exit code."""
    words = ["--annotations", str(rows), "--images", str(images), "--out", str(out), *more]
    return main(["jsonl", "--task", task, *words])


def prepare(
    folder: Path, rows: object, *more: str, task: str = "vqa", name: str = "rows.csv"
) -> int:
    """Pack `rows`, written to a file of that name, about FOLDER/photos to FOLDER/out."""
    file = write(folder / name, rows)
    return pack_rows(file, folder / "photos", folder / "out", *more, task=task)


def questions(*pictures: str) -> str:
    """A table with a different question about each picture."""
    lines = [f"{name},what is {index}?,x" for index, name in enumerate(pictures)]
    return "\n".join(["image,question,answer", *lines]) + "\n"
