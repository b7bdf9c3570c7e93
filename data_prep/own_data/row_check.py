"""Checks that the rows fit the task; the first that does not is an error, before any work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from data_prep.json_rows import shown
from data_prep.own_data.row_annotations import TASKS, RowForm, label_of, text_of
from data_prep.own_data.rows import Fields, Row, list_fields, published_as
from data_prep.packing.source import TYPES, and_more
from vlds.runtime.near_names import guess

NUMBERS = ("0", "1", "2")
"""Labels that several tasks may have."""
MOST_LABELS = 5
"""Labels that an error shows."""


def check_rows(rows: Sequence[Row], form: RowForm, path: Path) -> None:
    """Errors: ValueError that names the row's line, the field and the cure."""
    if not rows:
        raise ValueError(f"{path}: no rows")
    some_have_pictures = any(form.image in row.fields for row in rows)
    for row in rows:
        place = f"{path}, {row.place}"
        for name in form.named():
            if name not in row.fields:
                if name == form.image and some_have_pictures:
                    continue  # it is dropped, and counted
                raise ValueError(f"{place}: no field {name!r}; {_cure(row.fields, name, form)}")
            what = f"{place}: {name!r}"
            value = row.fields[name]
            _check_value(value, name == form.listed, what)
            if name in (form.id, form.split) and isinstance(value, bool | None):
                raise ValueError(f"{what} is {shown(value)}; expected text or a number")
        if form.text_rows:
            _check_value(row.fields.get(form.image), False, f"{place}: {form.image!r}")
        if form.id is not None and not text_of(row.fields, form.id):
            raise ValueError(
                f"{place}: {form.id!r} is empty; give each row an id, or leave out --id-field to "
                "name rows by their line"
            )
        for kind in TYPES if form.task.target == "answer" else ():
            _check_value(row.fields.get(kind), False, f"{place}: {kind!r}")
    if form.task.labels and form.target is not None:
        _check_labels(rows, form, form.target, path)


def refuse_repeated_ids(used: Iterable[tuple[str, str, Row]], field: str, path: Path) -> None:
    """Check that annotations have different ids, given as (split, id, row).

    Errors: ValueError that names the first two rows with the same id.
    """
    first_rows: dict[tuple[str, str], Row] = {}
    repeats: dict[str, tuple[Row, Row]] = {}
    for split, annotation_id, row in used:
        first = first_rows.setdefault((split, annotation_id), row)
        if first is not row:
            repeats.setdefault(row.number, (first, row))
    if repeats:
        first, second = next(iter(repeats.values()))
        raise ValueError(
            f"{path}, {first.place} and {second.place}: {field!r} is "
            f"{text_of(first.fields, field)!r} in both{and_more(len(repeats) - 1, 'such row')}; "
            "ids must be unique"
        )


def _cure(fields: Fields, missing: str, form: RowForm) -> str:
    """The fields of a row without the field `missing`, and what to do."""
    listed = list_fields(fields)
    if published := published_as(fields):
        return f"{listed}; {published}"
    lists = [name for name, value in fields.items() if isinstance(value, list) and value]
    if len(lists) == 1 and isinstance(fields[lists[0]][0], dict):
        return f"{listed}; its rows seem to be in {lists[0]!r}: save that list as a separate file"
    of_tasks = [name for name, task in TASKS.items() if task.text in fields]
    if of_tasks and missing == form.text:
        return f"{listed}, the form of --task {of_tasks[0]}"
    key = next(key for key, name in vars(form).items() if name == missing)
    option = {"text": form.task.text_option, "target": form.task.target}.get(key, key)
    keep = "; --text-rows keeps rows without pictures" if missing == form.image else ""
    return (
        f"{guess(missing, map(str, fields))}{listed}. Name the fields with --{option}-field and "
        f"the other --...-field options{keep}"
    )


def _check_value(value: Any, many: bool, what: str) -> None:
    """Refuse values that would be stored as the text of a Python object."""
    values = value if many and isinstance(value, list) else [value]
    if any(isinstance(entry, (dict, list)) for entry in values):
        expected = "text, a number or a list of them" if many else "text or a number"
        raise ValueError(f"{what} is {shown(value)}; expected {expected}")


def _check_labels(rows: Sequence[Row], form: RowForm, field: str, path: Path) -> None:
    """Refuse labels of another task, and labels that are all unknown. A few unknown ones are not an
    error: their rows are dropped and counted."""
    known = form.task.labels
    task = next(name for name, row_task in TASKS.items() if row_task is form.task)
    labels = [(label_of(row.fields, field), row) for row in rows]
    odd = Counter(label for label, _ in labels if label and label not in known)
    for other, row_task in TASKS.items():
        of_other = [label for label in odd if label in row_task.labels and label not in NUMBERS]
        if of_other:
            row = next(row for label, row in labels if label == of_other[0])
            raise ValueError(
                f"{path}, {row.place}: {field!r} is {of_other[0]!r}, which --task {task} does not "
                f"know (it takes {', '.join(known)}); --task {other} takes it"
            )
    if odd and not any(label in known for label, _ in labels):
        listed = ", ".join(f"{label!r} ({n:,})" for label, n in odd.most_common(MOST_LABELS))
        raise ValueError(
            f"{path}: --task {task} knows no label in {field!r}: found {listed}, and it takes "
            f"{', '.join(known)}. Other labels are answers to a question: --task vqa"
        )
