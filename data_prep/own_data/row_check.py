"""Are the rows what the task wants? The first that is not is named, before any work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.json_rows import shown
from data_prep.own_data.other_formats import published_as
from data_prep.own_data.row_annotations import KNOWN_LABELS, FieldNames, label_of
from data_prep.own_data.rows import Fields, Row
from data_prep.packing.source import TYPES
from vlds.runtime.near_names import guess

MOST_FIELDS = 12
"""Fields of a row that an error shows."""
NUMBERS = ("0", "1", "2")
"""Labels that say nothing about which task they are of."""
MOST_LABELS = 5
"""Labels that an error shows."""
TASK_OF = {
    "question": "vqa",
    "caption": "caption",
    "hypothesis": "entailment",
    "statement": "statement",
}
"""Field that only one task has -> the task."""


def check_rows(rows: Sequence[Row], names: FieldNames, task: str, path: Path) -> None:
    """Errors: ValueError that names the row's line, the field and the cure."""
    if not rows:
        raise ValueError(f"{path}: no rows")
    for row in rows:
        place = f"{path}, {row.place}"
        for wanted in names.named():
            if wanted not in row.fields:
                raise ValueError(
                    f"{place}: no field {wanted!r}; {_cure(row.fields, wanted, names)}"
                )
            many = wanted in (names.answer, names.caption)
            what = f"{place}: {wanted!r}"
            value = row.fields[wanted]
            _check_value(value, many, what)
            if wanted in (names.id, names.split) and isinstance(value, bool | None):
                raise ValueError(f"{what} is {shown(value)}; expected text or a number")
        for kind in TYPES if names.question else ():
            _check_value(row.fields.get(kind), False, f"{place}: {kind!r}")
    if names.label is not None:
        _check_labels(rows, names.label, task, path)


def _cure(fields: Fields, wanted: str, names: FieldNames) -> str:
    """What to do about a field that is not there."""
    there = [str(name) for name in fields]
    more = ", ..." if len(there) > MOST_FIELDS else ""
    found = f"it has {', '.join(there[:MOST_FIELDS])}{more}"
    if published := published_as(fields):
        return f"{found}; {published}"
    lists = [name for name, value in fields.items() if isinstance(value, list) and value]
    if len(lists) == 1 and isinstance(fields[lists[0]][0], dict):
        return f"{found}; its rows seem to be in {lists[0]!r}: save that list as a file of its own"
    other = next((t for name, t in TASK_OF.items() if name in fields and name != wanted), "")
    if other and wanted in (names.question, names.caption, names.hypothesis):
        return f"{found}, as --task {other} takes it"
    option = next((key for key, name in vars(names).items() if name == wanted), "image")
    return (
        f"{guess(wanted, there)}{found}. Name the fields with --{option}-field and the other "
        "--...-field options"
    )


def _check_value(value: Any, many: bool, what: str) -> None:
    """Refuse what would be stored as the text of a Python object."""
    values = value if many and isinstance(value, list) else [value]
    if any(isinstance(entry, (dict, list)) for entry in values):
        expected = "text, a number or a list of them" if many else "text or a number"
        raise ValueError(f"{what} is {shown(value)}; expected {expected}")


def _check_labels(rows: Sequence[Row], field: str, task: str, path: Path) -> None:
    """Labels of another task, or none that this one knows, are a mistake; a few odd ones are not:
    such rows are dropped and counted."""
    known = KNOWN_LABELS[task]
    labels = [(label_of(row.fields, field), row) for row in rows]
    odd = Counter(label for label, _ in labels if label and label not in known)
    for other, theirs in KNOWN_LABELS.items():
        taken = [label for label in odd if label in theirs and label not in NUMBERS]
        if taken:
            row = next(row for label, row in labels if label == taken[0])
            raise ValueError(
                f"{path}, {row.place}: {field!r} is {taken[0]!r}, which --task {task} does not "
                f"know (it takes {', '.join(known)}); --task {other} takes it"
            )
    if odd and not any(label in known for label, _ in labels):
        found = ", ".join(f"{label!r} ({n:,})" for label, n in odd.most_common(MOST_LABELS))
        raise ValueError(
            f"{path}: --task {task} knows no label in {field!r}: found {found}, and it takes "
            f"{', '.join(known)}. Other labels are answers to a question: --task vqa"
        )
