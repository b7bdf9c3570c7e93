"""The question files of LXMERT, as VL-T5 and VL-Adapter use them: `img_id`, `sent`, `label`.

Labels are soft scores by answer: what VQA's ten people gave, 1 for GQA's one answer; NLVR2's are 0
and 1, and its pictures are called `img0` and `img1`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.packing.source import (
    TYPES,
    Annotation,
    clean,
    first_existing,
    read_json_list,
    rest,
    take_id,
    take_text,
    with_source,
)
from vlds.runtime.regular_file import open_file


def is_lxmert(path: Path) -> bool:
    """Whether a file begins as a list; the official ones are objects."""
    if not path.is_file():
        return False
    with open_file(path) as file:
        return file.read(64).decode("utf-8-sig", "replace").lstrip().startswith("[")


def read_lxmert(path: Path, *fields: str) -> list[Mapping[str, Any]]:
    """The rows of a file, which have these ids and a sentence."""
    rows: list[Mapping[str, Any]] = read_json_list(path)
    for number, row in enumerate(rows, 1):
        for field in fields or ("question_id", "img_id"):
            take_id(row, field, f"{path}, row {number}")
        take_text(row, "sent", f"{path}, row {number}")
    return rows


def vqa_annotation(row: Mapping[str, Any], place: str) -> Annotation:
    """A question of VQA v2."""
    annotation: Annotation = {
        "id": str(row["question_id"]),
        "question": clean(row["sent"]),
    }
    if "label" in row:
        annotation["label"] = _label(row, place)
    annotation |= {
        key: take_text(row, key, f"{place}, question {row['question_id']}")
        for key in TYPES
        if key in row
    }
    known = ("question_id", "img_id", "sent", "label", *TYPES)
    return with_source(annotation, rest(row, *known))


def gqa_annotation(row: Mapping[str, Any], place: str) -> Annotation:
    """A question of GQA's balanced files; types and groups are not in LXMERT's form."""
    annotation: Annotation = {
        "id": str(row["question_id"]),
        "question": clean(row["sent"]),
        "balanced": True,
    }
    if label := _label(row, place) if "label" in row else {}:
        if len(label) != 1:
            raise ValueError(
                f"{place}: question {annotation['id']} has {len(label)} answers; GQA's have one"
            )
        annotation["answer"] = next(iter(label))
    return with_source(annotation, rest(row, "question_id", "img_id", "sent", "label"))


def nlvr2_annotation(row: Mapping[str, Any], place: str) -> Annotation:
    """A statement of NLVR2."""
    annotation: Annotation = {"id": str(row["identifier"]), "sentence": clean(row["sent"])}
    if "label" in row:
        if row["label"] not in (0, 1):
            raise ValueError(f"{place}: label {row['label']!r} is neither 0 nor 1")
        annotation["label"] = bool(row["label"])
    return with_source(annotation, rest(row, "identifier", "img0", "img1", "label", "sent"))


def _label(row: Mapping[str, Any], place: str) -> dict[str, float]:
    label = row["label"]
    if not isinstance(label, Mapping):
        raise ValueError(
            f"{place}: label {json.dumps(label)} of question {row.get('question_id')} is no "
            "mapping of answers to scores"
        )
    for answer, score in label.items():
        if not isinstance(score, (int, float)):
            raise ValueError(
                f"{place}: label {json.dumps(label)} of question {row.get('question_id')}: the "
                f"score of {answer!r} is no number"
            )
    return {answer: float(score) for answer, score in label.items()}


def coco_picture(folder: Path, stem: str, subset: str | None = None) -> Path:
    """A picture of COCO; its folder is part of its name: COCO_val2014_000000000042."""
    subset = subset or (stem.split("_")[1] if stem.count("_") == 2 else "")
    parts = (folder / subset, folder / "images" / subset, folder)
    return first_existing([part / f"{stem}.jpg" for part in parts])
