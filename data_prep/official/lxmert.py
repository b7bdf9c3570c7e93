"""The question files of LXMERT, as VL-T5 and VL-Adapter use them: `img_id`, `sent`, `label`.

Labels are soft scores by answer: the share of VQA's ten people, or 1 for GQA's one answer. NLVR2's
labels are 0 and 1, and its pictures are called `img0` and `img1`.
"""

from __future__ import annotations

from pathlib import Path

from vlds.runtime.files import open_file

from ..json_rows import JsonRow, read_list, shown
from ..packing.source import TYPES, Annotation, find_file


def is_lxmert(path: Path) -> bool:
    """True if a file begins as a list; the official ones are objects."""
    if not path.is_file():
        return False
    # 64 bytes: a byte-order mark and blanks may come before the bracket.
    with open_file(path) as file:
        return file.read(64).decode("utf-8-sig", "replace").lstrip().startswith("[")


def read_lxmert(path: Path, *ids: str) -> list[JsonRow]:
    """The rows of a file, which must have these ids (by default a question's) and a sentence."""
    rows = list(read_list(path, "row", 1))
    for row in rows:
        for key in ids or ("question_id", "img_id"):
            row.id(key)
        row.text("sent")
    return rows


def vqa_annotation(row: JsonRow) -> Annotation:
    annotation: Annotation = {"id": row.id("question_id"), "question": row.line("sent")}
    if "label" in row:
        annotation["label"] = _label(row)
    annotation |= {key: row.text(key) for key in TYPES if key in row}
    return row.annotate(annotation, "question_id", "img_id", "sent", "label", *TYPES)


def gqa_annotation(row: JsonRow) -> Annotation:
    """A question of GQA's balanced files; LXMERT's form has no types and groups."""
    annotation: Annotation = {
        "id": row.id("question_id"),
        "question": row.line("sent"),
        "balanced": True,
    }
    if label := _label(row) if "label" in row else {}:
        if len(label) != 1:
            raise ValueError(
                f"{row.place}: question {annotation['id']} has {len(label)} answers; GQA's have one"
            )
        annotation["answer"] = next(iter(label))  # its score is 1
    return row.annotate(annotation, "question_id", "img_id", "sent", "label")


def nlvr2_annotation(row: JsonRow) -> Annotation:
    annotation: Annotation = {"id": row.text("identifier"), "sentence": row.line("sent")}
    if "label" in row:
        # JSON's true and false will do as well: for Python they equal 1 and 0.
        if row.value("label") not in (0, 1):
            raise ValueError(f"{row.place}: label {row.value('label')!r} is neither 0 nor 1")
        annotation["label"] = bool(row.value("label"))
    return row.annotate(annotation, "identifier", "img0", "img1", "label", "sent")


def _label(row: JsonRow) -> dict[str, float]:
    """Answer -> score."""
    label = row.value("label")
    fault = ""
    if not isinstance(label, dict):
        fault = " must map answers to scores"
    elif odd := [a for a, score in label.items() if not isinstance(score, (int, float))]:
        fault = f": the score of {odd[0]!r} is not a number"
    if fault:
        question_id = row.id("question_id")
        raise ValueError(f"{row.place}: label {shown(label)} of question {question_id}{fault}")
    return {answer: float(score) for answer, score in label.items()}


def coco_picture(folder: Path, stem: str, subset: str | None = None) -> Path:
    """A picture of COCO, whose name contains its folder: COCO_val2014_000000000042."""
    # COCO_val2014_000000000042 -> val2014
    subset = subset or (stem.split("_")[1] if stem.count("_") == 2 else "")
    return find_file(folder, (subset, f"images/{subset}", ""), f"{stem}.jpg")
