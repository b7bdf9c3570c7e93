"""Somebody's own pictures and rows, and the command that packs them."""

from __future__ import annotations

from pathlib import Path

from data_prep.cli import main
from tests.toys.pictures import jpeg, write


def photos(folder: Path, *names: str) -> Path:
    """Pictures that all differ."""
    for width, name in enumerate(names, 30):
        write(folder / name, jpeg(width=width))
    return folder


def prepare(
    folder: Path, rows: object, *more: str, task: str = "vqa", name: str = "rows.csv"
) -> int:
    """Pack `rows`, written to a file of that name, about FOLDER/photos to FOLDER/out."""
    file = write(folder / name, rows)
    given = ["--annotations", str(file), "--images", str(folder / "photos")]
    return main(["jsonl", "--task", task, *given, "--out", str(folder / "out"), *more])


def questions(*pictures: str) -> str:
    """A table that asks something else of each."""
    lines = [f"{name},what is {number}?,x" for number, name in enumerate(pictures)]
    return "\n".join(["image,question,answer", *lines]) + "\n"
