"""Ids of the annotations in the files that a data set is made from.

The official files of all data sets that are packed here, and those in LXMERT's form, without
knowing which is which: the rows and their ids are found by the names of the fields.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from data_prep.official.coco_karpathy import SPLITS
from data_prep.packing.source import LARGEST_SOURCE, read_json_lines, take_id
from vlds.runtime.json_file import NotFinite, strict_json
from vlds.runtime.regular_file import read_text

ID_FIELDS = (
    "question_id", "questionId", "identifier", "sentid", "pairID", "qid", "qa_id", "region_id",
    "desc_id", "clip_id", "id",
)  # fmt: skip
"""The first of these that a row has is the id of its annotation."""
LISTS = ("questions", "annotations", "images")
"""Where an official file keeps its rows."""
NESTED = ("sentences", "qas", "regions", "descs")
"""Rows about a picture or clip that hold the annotations as a list."""
SAMPLE_FIELDS = (
    "image_id", "imageId", "img_id", "cocoid", "image", "id", "Flickr30K_ID", "vid_name", "clip_id",
)  # fmt: skip
"""What a sample may be called after."""
Row = Mapping[str, Any]


def read_annotation_ids(
    path: Path, splits: Collection[str], dropped: Collection[str]
) -> dict[str, bool]:
    """Id of each annotation in a file -> whether it, or its whole sample, is among the dropped.

    Rows that name another split (as Karpathy's do) are left out. Errors: ValueError where no ids
    are found.
    """
    found = {}
    official = {part for split in splits for part in SPLITS.get(split, (split,))}
    for number, (outer, row) in enumerate(_annotations(_read(path))):
        if "split" in outer and str(outer["split"]) not in official:
            continue
        name = next((field for field in ID_FIELDS if field in row), None)
        if name is None:
            raise ValueError(
                f"{path}: a row has none of {', '.join(ID_FIELDS)}; it has {', '.join(row)}. "
                "Give the official file, or one in LXMERT's form"
            )
        annotation = take_id(row, name, f"{path}, annotation {number}")
        names = (annotation, *_sample_ids(outer, annotation))
        found[annotation] = any(name in dropped for name in names)
    if not found:
        raise ValueError(
            f"{path}: no annotation of split {', '.join(sorted(splits))} in it; "
            "give the files that the data set is made from"
        )
    return found


def _sample_ids(row: Row, annotation: str) -> list[str]:
    """What the sample of an annotation may be called. NLVR2's pairs are called as their sentences
    are, without the last number."""
    pair = annotation.rpartition("-")[0]
    return [pair, *(str(row[field]) for field in SAMPLE_FIELDS if field in row)]


def _read(path: Path) -> Any:
    """JSON, or JSON lines whatever the file is called."""
    try:
        return strict_json(read_text(path, LARGEST_SOURCE, encoding="utf-8-sig"), str(path))
    except FileNotFoundError:
        raise ValueError(f"--annotations {path} does not exist; check the path") from None
    except NotFinite:
        raise
    except ValueError:
        return read_json_lines(path)


def _annotations(content: Any) -> Iterator[tuple[Row, Row]]:
    """(row, annotation in it); the two are the same where a row is one annotation."""
    for row in _rows(content):
        lists = [row[name] for name in NESTED if isinstance(row.get(name), list)]
        nested = [entry for entry in chain(*lists) if isinstance(entry, dict)]
        yield from ((row, annotation) for annotation in (nested if lists else (row,)))


def _rows(content: Any) -> list[Row]:
    """The rows of a file, whichever form it has."""
    if isinstance(content, dict):
        lists = [content[name] for name in LISTS if isinstance(content.get(name), list)]
        if lists:
            content = lists[0]
        elif any(name in content for name in ID_FIELDS):  # JSON lines, but one line
            return [content]
        else:  # GQA's questions by id
            found = [(key, row) for key, row in content.items() if isinstance(row, dict)]
            return [{**row, "questionId": key} for key, row in found]
    return [row for row in content if isinstance(row, dict)] if isinstance(content, list) else []
