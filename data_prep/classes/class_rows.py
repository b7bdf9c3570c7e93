"""Tables of pictures and classes: CSV or TSV, JSON lines or a JSON list."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_prep.classes.class_set import ClassSource
from data_prep.classes.picture_lists import Entry, SplitFile, shown_pictures
from data_prep.json_rows import clean, shown
from data_prep.own_data.rows import Row, list_fields, read_rows
from data_prep.packing.journal import Dropped
from vlds.runtime.near_names import guess

REPEATED = "the picture and class of an earlier row"


def read_table_of_classes(
    files: Sequence[SplitFile],
    images: Path,
    image: str,
    label: str,
    split: str | None,
    *,
    apart: bool,
) -> ClassSource:
    """The pictures of all files; `image`, `label` and `split` name columns; `apart`: each file is a
    split.

    Errors: ValueError that names the line, the column and the cure.
    """
    entries: list[Entry] = []
    dropped: list[tuple[str, Dropped]] = []
    used = (image, label, split)
    for of_file, path in files:
        for row in read_rows(path):
            place = f"{path.name}, {row.place}"
            cells = {
                "picture": _cell(row, image, path),
                "class": _cell(row, label, path),
                "split": of_file if split is None else _cell(row, split, path),
            }
            part = cells["split"]
            if missing := [what for what, cell in cells.items() if not cell]:
                dropped.append((part, Dropped(place, f"no {missing[0]}")))
            else:
                rest = {name: cell for name, cell in row.fields.items() if name not in used}
                entries.append(Entry(cells["picture"], cells["class"], part, place, rest))
    if not entries:
        raise ValueError(f"{files[0].path}: no row with a picture and a class")
    pictures, repeats = shown_pictures(entries, images)
    dropped += [(entry.split, Dropped(entry.place, REPEATED)) for _, entry in repeats]
    known = {picture.split for picture in pictures}
    # Some data set must list each dropped row, even if its split is empty or has no pictures.
    dropped = [(of if of in known else max(known), drop) for of, drop in dropped]
    paths = tuple(file.path for file in files)
    return ClassSource(pictures, paths, dropped=dropped, apart=apart or split is not None)


def _cell(row: Row, name: str, path: Path) -> str:
    """The text in a column, on one line."""
    if name not in row.fields:
        raise ValueError(
            f"{path}, {row.place}: no field {name!r}; {guess(name, map(str, row.fields))}"
            f"{list_fields(row.fields)}. Name the columns with --image-field, --label-field and "
            "--split-field; the first line of a table must name them"
        )
    value = row.fields[name]
    if isinstance(value, (dict, list, bool)):
        raise ValueError(
            f"{path}, {row.place}: {name!r} is {shown(value)}; expected text or a number"
        )
    return "" if value is None else clean(str(value))
