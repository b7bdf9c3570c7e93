"""Parquet files and saved data sets of Hugging Face, row by row. pyarrow reads them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.own_data.rows import UserRow
from vlds.runtime.files import read_text

SPLIT_NAME = re.compile(r"(.+)-[0-9]{5}-of-[0-9]{5}")
"""How Hugging Face names the files of a split: train-00000-of-00002.parquet."""
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
    if place.suffix == ".parquet":
        return [Table(place, None)]
    if not place.is_dir():
        return []
    saved = place / "dataset_dict.json"
    if saved.is_file():
        splits = json.loads(read_text(saved)).get("splits", [])
        tables = [
            Table(file, str(split))
            for split in splits
            for file in sorted((place / str(split)).glob("*.arrow"))
        ]
    elif (place / "state.json").is_file():
        tables = [Table(file, None) for file in sorted(place.glob("*.arrow"))]
    else:
        files = sorted(place.rglob("*.parquet"))
        named = [SPLIT_NAME.fullmatch(file.stem) for file in files]
        tables = [
            Table(file, found[1] if found else None)
            for file, found in zip(files, named, strict=True)
        ]
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
        if path.suffix == ".parquet":
            with pyarrow.parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(ROWS):
                    yield from batch.to_pylist()
            return
        with pyarrow.memory_map(str(path)) as file, pyarrow.ipc.open_stream(file) as stream:
            for batch in stream:
                for start in range(0, batch.num_rows, ROWS):
                    yield from batch.slice(start, ROWS).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} cannot be read: {error}; copy it again") from error
