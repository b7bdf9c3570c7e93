"""Rows out of a JSON file in COCO's form that somebody has made of own pictures: its captions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.own_data.row_annotations import FieldNames
from data_prep.own_data.rows import Fields, Row
from data_prep.packing.source import take_id, take_list, take_text


def is_coco(rows: Sequence[Row]) -> bool:
    """Whether a file is one object with pictures and what is said of them."""
    return len(rows) == 1 and all(
        isinstance(rows[0].fields.get(name), list) for name in ("images", "annotations")
    )


def rows_of_coco(content: Fields, names: FieldNames, path: Path) -> list[Row]:
    """One row for each caption, with the fields that `names` wants."""
    if names.caption is None:
        raise ValueError(f"{path} is in COCO's form, which holds captions: give --task caption")
    return list(_captions(content, names.caption, names, path))


def _captions(content: Fields, caption: str, names: FieldNames, path: Path) -> Iterator[Row]:
    told = take_list(content, "annotations", f"{path}")
    if told and not any(isinstance(row, dict) and "caption" in row for row in told):
        raise ValueError(
            f"{path} is in COCO's form and has no captions (boxes, key points or segments are not "
            "read); give the file of captions"
        )
    pictures = {}
    for number, row in enumerate(take_list(content, "images", f"{path}"), 1):
        place = f"{path}, image {number}"
        pictures[take_id(row, "id", place)] = take_text(row, "file_name", place), row
    for number, row in enumerate(told, 1):
        place = f"{path}, annotation {number}"
        file, about = pictures.get(take_id(row, "image_id", place), ("", {}))
        fields = {names.image: file, caption: take_text(row, "caption", place)}
        if names.split is not None:
            fields[names.split] = about.get(names.split, "")
        annotation_id = take_id(row, "id", place)
        if names.id is not None:
            fields[names.id] = row.get(names.id, annotation_id)
        yield Row(fields, annotation_id, "annotation", "" if file else "picture not in the file")
