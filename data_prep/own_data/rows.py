"""Rows of a user's file: read them from JSON lines, a JSON list or a table (CSV), check that they
fit the task, and make annotations of them, task by task."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from vlds.data.shards.sample import UNFIT
from vlds.runtime.checks import guess
from vlds.runtime.files import open_file

from ..json_rows import (
    UTF_16,
    JsonRow,
    clean,
    encoding_of,
    open_text,
    read_json,
    read_lines,
    read_object,
    shown,
)
from ..official.snli_ve import LABELS
from ..packing.pack import NUM_ANNOTATORS, REQUIRED, answer_fields, text_fault
from ..packing.source import TYPES, Annotation, Dropped, and_more, in_lines
from .table import TABLES, read_table

Fields = Mapping[str, Any]
MOST_FIELDS = 12
"""Fields of a row that an error shows."""
BINARY: tuple[tuple[bytes, str], ...] = (
    (
        b"PAR1",
        "is Parquet; write its pictures as files and its rows as JSON lines first "
        '("Parquet" in docs/own_data.md has the lines that do it)',
    ),
    (b"ARROW1", "is Arrow; write its pictures as files and its rows as JSON lines first"),
    (b"PK\x03\x04", "is an Excel workbook or a ZIP archive; save it as CSV (UTF-8), or unpack it"),
    (b"\xd0\xcf\x11\xe0", "is an Excel workbook; save it as CSV (UTF-8)"),
    (b"\x1f\x8b", "is compressed with gzip; unpack it with gunzip"),
    (b"\x28\xb5\x2f\xfd", "is compressed with Zstandard; unpack it with unzstd"),
    (b"SQLite format 3", "is an SQLite database; export the table as CSV"),
)
"""First bytes of a file -> what it is, and the cure."""
WITHOUT_MARK: Mapping[str, slice] = {"UTF-16LE": slice(1, None, 2), "UTF-16BE": slice(0, None, 2)}
"""Encoding -> which bytes of plain English text are zero."""
PUBLISHED: tuple[tuple[Collection[str], str, str], ...] = (
    (("conversations",), "conversations of LLaVA or ShareGPT", "chat --annotations FILE"),
    (("messages",), "conversations of OpenAI's form", "chat --annotations FILE"),
    (("instruction", "output"), "conversations of LLaMA-Factory", "chat --annotations FILE"),
    (("query", "response"), "conversations of ms-swift", "chat --annotations FILE"),
    (("images", "annotations"), "COCO's", "coco-captions --annotations FILE"),
    (("images", "dataset"), "Karpathy's split of COCO", "coco-karpathy --annotations FILE"),
    (("questions", "data_subtype"), "the questions of VQA v2", "vqav2 --questions FILE"),
    (("questions", "task_type"), "the questions of VQA v2", "vqav2 --questions FILE"),
    (("question_id", "img_id", "sent"), "LXMERT's questions", "vqav2 --questions FILE"),
    (("img0", "img1", "sent"), "LXMERT's NLVR2", "nlvr2 --annotations FILE"),
    (("identifier", "sentence"), "NLVR2", "nlvr2 --annotations FILE"),
    (("pairID", "gold_label", "sentence2"), "SNLI-VE", "snli-ve --annotations FILE"),
    (("id", "qas"), "the questions of Visual Genome", "vg --what questions"),
    (("id", "regions"), "the regions of Visual Genome", "vg --what regions"),
)
"""Fields of a published file, its name, and the command that takes it."""


@dataclass(frozen=True)
class UserRow:
    """A row and its place in the file."""

    fields: Fields
    number: str
    """First line, from 1; if several rows share a line, the row's own number from 1."""
    noun: str = "line"
    fault: str = ""
    """Why it cannot be used, if that is known already."""

    @property
    def place(self) -> str:
        """For messages: "line 7"."""
        return f"{self.noun} {self.number}"


def read_rows(path: Path, option: str = "--annotations") -> list[UserRow]:
    """Rows by the first character: `[` begins a JSON list, `{` JSON lines or one JSON object, which
    becomes the only row; anything else is a table. `option`: what named the file, for messages."""
    if not path.exists():
        files = [other.name for other in path.parent.glob("*") if other.is_file()]
        hint = guess(path.name, files).rstrip()
        raise ValueError(f"{option} {path} does not exist{'; ' if hint else ''}{hint}")
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder; give the file of rows in it")
    with open_file(path) as binary:
        begin = binary.read(16)
    for magic, fault in BINARY:
        if begin.startswith(magic):
            raise ValueError(f"{option} {path} {fault}")
    # "at" is 61 00 74 00 in UTF-16LE: every second byte of English text is 0.
    for encoding, positions in WITHOUT_MARK.items():
        high_bytes = begin[positions]
        if encoding_of(path) != UTF_16 and high_bytes.count(0) > len(high_bytes) / 2:
            raise ValueError(
                f"{option} {path} looks like UTF-16 without a byte-order mark (it has zero "
                f"bytes); save it as UTF-8: iconv -f {encoding} -t UTF-8 {path.name} > NEW"
            )
    # Only to choose the reader, which then says in which line a byte is wrong.
    with TextIOWrapper(open_file(path), encoding_of(path), errors="replace") as file:
        first = next((line.strip() for line in file if line.strip()), "")
    # By the name too: a cell of a table may begin with a bracket.
    if path.suffix.lower() in TABLES or not first.startswith(("[", "{")):
        return [UserRow(fields, str(line)) for line, fields in read_table(path)]
    if first.startswith("["):
        entries = read_json(path)
        with open_text(path) as file:
            lines = list(_entry_lines(file.read()))
        # An editor finds a row by its line, unless several rows share one.
        noun = "line" if len(set(lines)) == len(lines) else "row"
        numbers = lines if noun == "line" else range(1, len(entries) + 1)
        return [
            UserRow(JsonRow(entry, f"{path}, {noun} {number}").fields, str(number), noun)
            for number, entry in zip(numbers, entries, strict=True)
        ]
    is_row = False
    with suppress(ValueError, RecursionError):  # one object over several lines may begin so, too
        is_row = first.endswith("},") and isinstance(json.loads(first[:-1]), dict)
    if is_row:
        raise ValueError(
            f"{path}: a comma follows the first row; JSON lines have no commas between rows, and a "
            "JSON list begins with ["
        )
    if first.endswith("}"):
        return [UserRow(row.fields, str(line)) for line, row in read_lines(path)]
    return [UserRow(read_object(path).fields, "1")]


def _entry_lines(text: str) -> Iterator[int]:
    """The line on which each entry of a valid JSON list begins."""
    decoder = json.JSONDecoder()
    between = re.compile(r"[\s,]*")
    position, line, counted = text.index("[") + 1, 1, 0
    while True:
        match = between.match(text, position)
        position = match.end() if match else position
        if text[position] == "]":
            return
        line += text.count("\n", counted, position)  # from 0 each time, it would be quadratic
        counted = position
        yield line
        # Passes over the whole entry, whatever brackets its texts hold.
        _, position = decoder.raw_decode(text, position)


def list_fields(fields: Fields) -> str:
    """For messages: "it has image, question, ..."."""
    more = ", ..." if len(fields) > MOST_FIELDS else ""
    return f"it has {', '.join(map(str, [*fields][:MOST_FIELDS]))}{more}"


Result = Annotation | str
"""An annotation, or the reason why there is none."""
TRUTH: Mapping[str, str] = {
    "true": "true", "yes": "true", "1": "true", "false": "false", "no": "false", "0": "false",
}  # fmt: skip
"""Labels of a true or a false statement -> the answer."""


@dataclass(frozen=True)
class RowForm:
    """What rows are for, and which field holds what."""

    task: RowTask
    image: str
    text: str
    """The question, caption, or sentence to judge."""
    target: str | None = None
    """The answer or label; None for captions and for a test split."""
    id: str | None = None
    """None: rows are named by their line."""
    split: str | None = None
    text_rows: bool = False
    """A row may have no picture."""
    group: str | None = None
    """What rows of one split may have in common."""

    @property
    def listed(self) -> str | None:
        """The field that may hold a list: captions or answers."""
        if self.task.target is None:
            return self.text
        return None if self.task.labels else self.target

    def named(self) -> list[str]:
        """The fields every row must have."""
        image = None if self.text_rows else self.image
        fields = (image, self.text, self.target, self.id, self.split, self.group)
        return [name for name in fields if name is not None]

    def held(self) -> list[str]:
        """The fields that annotations and splits hold by themselves: a group stays under "source",
        where a reader can see it."""
        return [self.image, *(name for name in self.named() if name != self.group)]


@dataclass(frozen=True)
class RowTask:
    """One --task: what its rows hold, and how they become annotations."""

    kind: str
    """Kind of the annotations: `VQA` trains on statements, too."""
    text: str
    """Usual field of the text."""
    target: str | None
    """Usual field of the answer or label."""
    annotate: Callable[[Fields, str, RowForm], list[Result]]
    labels: Mapping[str, Annotation] = field(default_factory=dict)
    """Known label -> the fields that it adds to an annotation."""

    @property
    def text_option(self) -> str:
        """The option --..._field that names the text."""
        return "hypothesis" if self.labels else self.text


def text_of(row: Fields, name: str) -> str:
    """A field as stripped text; "" for null, an empty list or a missing field, but not for 0."""
    value = row.get(name)
    is_empty = value is None or (isinstance(value, (list, dict)) and not value)
    return "" if is_empty else in_text(value).strip()


def in_text(value: Any) -> str:
    """A value as a file writes it: true, not Python's True."""
    return json.dumps(value) if isinstance(value, bool) else str(value)


def picture_of(row: Fields, form: RowForm) -> str:
    """The name of a row's picture; "" if it has none."""
    return text_of(row, form.image) if form.image in row else ""


def annotations_of(row: Fields, row_id: str, form: RowForm) -> list[Annotation | Dropped]:
    """The annotations of a row, and what cannot be used of it."""
    picture = picture_of(row, form)
    group = text_of(row, form.group) if form.group else ""
    if fault := text_fault({"picture": picture, "id": row_id, "group": group}):
        results: list[Result] = [fault]
    elif UNFIT.search(picture):
        results = ["line break or control character in the picture's name"]
    elif form.text_rows or picture:
        results = form.task.annotate(row, row_id, form)
    else:
        results = ["no image"]
    return [Dropped(row_id, entry) if isinstance(entry, str) else entry for entry in results]


def _question(row: Fields, row_id: str, form: RowForm) -> list[Result]:
    question = clean(text_of(row, form.text))
    if not question:
        return ["no question"]
    annotation: Annotation = {"id": row_id, "question": question}
    if form.target is not None:
        value = row[form.target]
        answers = _texts(value, str.strip)
        if not any(answers):
            return ["no answer"]
        # As in VQA v2, one of ten people may have answered nothing; this keeps the weights of the
        # others. Elsewhere, an empty entry is a fault of the source.
        if not all(answers) and (None in value or len(answers) < NUM_ANNOTATORS):
            return ["empty answer in a list"]
        annotation |= answer_fields(answers)
    annotation |= {
        key: clean(in_text(row[key]))
        for key in TYPES
        if row.get(key) is not None and key not in form.held()
    }
    return [_with_rest(annotation, row, *form.held(), *TYPES)]


def _captions(row: Fields, row_id: str, form: RowForm) -> list[Result]:
    texts = _texts(row[form.text]) or [""]
    captions = list(filter(None, texts))
    # Row 7 with one caption -> 7; with two -> 7-0 and 7-1.
    ids = [row_id] if len(captions) == 1 else [f"{row_id}-{i}" for i in range(len(captions))]
    results: list[Result] = ["no caption"] * (len(texts) - len(captions))
    for caption_id, caption in zip(ids, captions, strict=True):
        annotation = {"id": caption_id, "caption": caption}
        results.append(_with_rest(annotation, row, *form.held()))
    return results


def _judged(row: Fields, row_id: str, form: RowForm) -> list[Result]:
    """A sentence about the picture with its label; a statement becomes a question."""
    sentence = clean(text_of(row, form.text))
    if not sentence:
        return [f"no {form.task.text}"]
    # A statement is the question of a VQA annotation.
    annotation: Annotation = {"id": row_id, REQUIRED[form.task.kind]: sentence}
    if form.target is not None:
        label = label_of(row, form.target)
        if label not in form.task.labels:
            return [f"label {label}" if label else "no label"]
        annotation |= form.task.labels[label]
    return [_with_rest(annotation, row, *form.held())]


def label_of(row: Fields, field: str) -> str:
    """The label of a row in lower case; "" if there is none."""
    return clean(text_of(row, field)).lower()


def _texts(value: Any, trimmed: Callable[[str], str] = clean) -> list[str]:
    """One text or a list of them, "" for null; answers may be JSON numbers."""
    values = value if isinstance(value, list) else [value]
    return ["" if text is None else trimmed(in_text(text)) for text in values]


def _with_rest(annotation: Annotation, row: Fields, *known: str) -> Annotation:
    """Add the row's other fields, if there are any."""
    extra = {name: value for name, value in row.items() if name not in known}
    return {**annotation, "source": extra} if extra else annotation


ENTAILMENT_LABELS = {label: {"label": label} for label in LABELS}
STATEMENT_LABELS = {word: answer_fields([truth]) for word, truth in TRUTH.items()}
"""A statement becomes a question with one of two answers."""
TASKS: Mapping[str, RowTask] = {
    "vqa": RowTask("vqa", "question", "answer", _question),
    "caption": RowTask("caption", "caption", None, _captions),
    "entailment": RowTask("entailment", "hypothesis", "label", _judged, ENTAILMENT_LABELS),
    "statement": RowTask("vqa", "statement", "label", _judged, STATEMENT_LABELS),
}


NUMBERS = ("0", "1", "2")
"""Labels that several tasks may have."""
MOST_LABELS = 5
"""Labels that an error shows."""


def check_rows(rows: Sequence[UserRow], form: RowForm, path: Path) -> None:
    """Errors: ValueError that names the rows' lines, their fields and the cures."""
    if not rows:
        raise ValueError(f"{path}: no rows")
    some_have_pictures = any(form.image in row.fields for row in rows)
    faults = []
    for row in rows:
        try:
            _check_row(row, form, some_have_pictures)
        except ValueError as error:
            faults.append((row.place, str(error)))
    if faults:
        raise ValueError(in_lines(path, faults))
    if form.task.labels and form.target is not None:
        _check_labels(rows, form, form.target, path)


def _check_row(row: UserRow, form: RowForm, some_have_pictures: bool) -> None:
    for name in form.named():
        if name not in row.fields:
            if name == form.image and some_have_pictures:
                continue  # it is dropped, and counted
            raise ValueError(f"no field {name!r}; {_cure(row.fields, name, form)}")
        what = repr(name)
        value = row.fields[name]
        _check_value(value, name == form.listed, what)
        if name in (form.id, form.split) and isinstance(value, bool | None):
            raise ValueError(f"{what} is {shown(value)}; expected text or a number")
    if form.text_rows:
        _check_value(row.fields.get(form.image), False, repr(form.image))
    if form.group is not None and not text_of(row.fields, form.group):
        raise ValueError(f"{form.group!r} is empty; give each row its group, or one of its own")
    if form.id is not None and not text_of(row.fields, form.id):
        raise ValueError(
            f"{form.id!r} is empty; give each row an id, or leave out --id-field to "
            "name rows by their line"
        )
    # Scores are grouped by these, so that each must be a text.
    for kind in TYPES if form.task.target == "answer" else ():
        _check_value(row.fields.get(kind), False, repr(kind))


def refuse_repeated_ids(used: Iterable[tuple[str, str, UserRow]], field: str, path: Path) -> None:
    """Check that annotations have different ids, given as (split, id, row).

    Errors: ValueError that names the first two rows with the same id.
    """
    first_rows: dict[tuple[str, str], UserRow] = {}
    repeats: dict[str, tuple[UserRow, UserRow]] = {}
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
    # GQA's file is one object, {"07333408": {"imageId": ...}, ...}.
    listed = list_fields(fields)
    if fields and all(isinstance(v, dict) and "imageId" in v for v in [*fields.values()][:3]):
        return f"{listed}; it looks like the questions of GQA, which `gqa --src` takes"
    for names, what, command in PUBLISHED:
        if all(name in fields for name in names):
            return f"{listed}; it looks like {what}, which `{command}` takes"
    # {"version": 1, "data": [{...}, ...]}
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


def _check_labels(rows: Sequence[UserRow], form: RowForm, field: str, path: Path) -> None:
    """Refuse labels of another task, and labels that are all unknown. A few unknown ones are not an
    error: their rows are dropped and counted."""
    known = form.task.labels
    task = next(name for name, row_task in TASKS.items() if row_task is form.task)
    labels = [(label_of(row.fields, field), row) for row in rows]
    odd = Counter(label for label, _ in labels if label and label not in known)
    # "entailment" under --task statement is a mistake of the command; 0 and 1 may mean anything.
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
