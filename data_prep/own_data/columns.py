"""Parquet files and saved data sets of Hugging Face, row by row. pyarrow reads them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vlds.runtime.files import open_file

from ..json_rows import read_object
from .rows import UserRow

SPLIT_NAME = re.compile(r"(.+?)-[0-9]{5}-of-[0-9]{5}(-[0-9a-f]+)?")
"""How Hugging Face names the files of a split: train-00000-of-00002.parquet, in older sets with a
hash behind it."""
NUMBERED = re.compile(r"[0-9]+")
"""How it names files in a folder for each split: train/0000.parquet."""
PARQUET, ARROW = b"PAR1", ".arrow"
ROWS = 64
"""Rows that are read at once: each may hold pictures."""


class Table(NamedTuple):
    """A file of rows."""

    path: Path
    split: str | None
    """The split that its name or folder says."""


def find_tables(place: Path) -> list[Table]:
    """The Parquet or Arrow files of a place; none if it is another file.

    Errors: ValueError for a folder without any, or with several splits of which some have no name.
    """
    if place.is_file():
        with open_file(place) as file:
            is_parquet = file.read(len(PARQUET)) == PARQUET
        return [Table(place, None)] if is_parquet or place.suffix == ".parquet" else []
    if not place.is_dir():
        return []
    saved = place / "dataset_dict.json"
    if saved.is_file():
        splits = _listed(saved, "splits")
        tables = [Table(file, split) for split in splits for file in _arrow_files(place / split)]
    elif (place / "state.json").is_file():
        tables = [Table(file, None) for file in _arrow_files(place)]
    else:
        tables = [Table(file, _split_of(file)) for file in sorted(place.rglob("*.parquet"))]
    if not tables:
        raise ValueError(
            f"--annotations {place}: no Parquet files, and not what `save_to_disk` writes; give a "
            "file, or a folder of such"
        )
    if len({table.split for table in tables}) == 1:
        return [table._replace(split=None) for table in tables]
    if unnamed := next((table.path for table in tables if table.split is None), None):
        raise ValueError(
            f"--annotations {place}: {unnamed.name} does not say its split, as others do; give one "
            "split at a time"
        )
    return tables


def _split_of(file: Path) -> str | None:
    """The split that a Parquet file's name or folder says."""
    if found := SPLIT_NAME.fullmatch(file.stem):
        return found[1]
    return file.parent.name if NUMBERED.fullmatch(file.stem) else None


def _arrow_files(folder: Path) -> list[Path]:
    """The files of a split that `save_to_disk` has written: not those that lie beside them, which
    are of other steps."""
    files = _listed(folder / "state.json", "_data_files")
    return [folder / str(entry["filename"]) for entry in files if isinstance(entry, dict)]


def _listed(file: Path, key: str) -> list[Any]:
    """Errors: ValueError if a file of `save_to_disk` is missing or another."""
    content = read_object(file).value(key)
    if not isinstance(content, list):
        raise ValueError(f"{file}: {key!r} is no list; is it what `save_to_disk` writes?")
    return content


def read_columns(tables: Sequence[Table]) -> Iterator[tuple[str | None, UserRow]]:
    """Rows with their files' splits; each split counts its rows from 1.

    Errors: ValueError if pyarrow is missing, or a file is damaged.
    """
    numbers: dict[str | None, int] = {}
    for table in tables:
        for fields in _rows(table.path):
            numbers[table.split] = number = numbers.get(table.split, 0) + 1
            yield table.split, UserRow(fields, str(number), "row")


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f"{path} needs the package pyarrow: pip install 'vlds[parquet]'") from None
    try:
        if path.suffix != ARROW:
            with pyarrow.parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(ROWS):
                    yield from batch.to_pylist()
            return
        with pyarrow.memory_map(str(path)) as file, pyarrow.ipc.open_stream(file) as stream:
            for batch in stream:
                for start in range(0, batch.num_rows, ROWS):
                    yield from batch.slice(start, ROWS).to_pylist()
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} cannot be read: {error}; copy it again") from error
