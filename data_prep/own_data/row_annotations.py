"""What a row of your own data says about its picture, task by task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from data_prep.json_rows import clean
from data_prep.official.snli_ve import LABELS
from data_prep.own_data.rows import Fields
from data_prep.packing.annotation import NUM_ANNOTATORS, REQUIRED, soft_label
from data_prep.packing.journal import Dropped
from data_prep.packing.source import TYPES, Annotation

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

    @property
    def listed(self) -> str | None:
        """The field that may hold a list: captions or answers."""
        if self.task.target is None:
            return self.text
        return None if self.task.labels else self.target

    def named(self) -> list[str]:
        """The fields every row must have."""
        image = None if self.text_rows else self.image
        fields = (image, self.text, self.target, self.id, self.split)
        return [name for name in fields if name is not None]


@dataclass(frozen=True)
class RowTask:
    """One --task: what its rows hold, and how they become annotations."""

    kind: str
    """Of the annotations: `VQA` trains on statements, too."""
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
    """A field as stripped text; "" for null."""
    return "" if row[name] is None else str(row[name]).strip()


def picture_of(row: Fields, form: RowForm) -> str:
    """The name of a row's picture; "" if it has none."""
    return text_of(row, form.image) if form.image in row else ""


def annotations_of(row: Fields, row_id: str, form: RowForm) -> list[Annotation | Dropped]:
    """The annotations of a row, and what cannot be used of it."""
    is_usable = form.text_rows or picture_of(row, form)
    results = form.task.annotate(row, row_id, form) if is_usable else ["no image"]
    return [Dropped(row_id, entry) if isinstance(entry, str) else entry for entry in results]


def _question(row: Fields, row_id: str, form: RowForm) -> list[Result]:
    question = clean(str(row[form.text] or ""))
    if not question:
        return ["no question"]
    annotation: Annotation = {"id": row_id, "question": question}
    if form.target is not None:
        answers = _answers(row[form.target])
        if isinstance(answers, str):
            return [answers]
        annotation |= {"answers": answers, "label": soft_label(answers)}
    annotation |= {
        key: clean(str(row[key]))
        for key in TYPES
        if row.get(key) is not None and key not in (*form.named(), form.image)
    }
    return [_with_rest(annotation, row, *form.named(), form.image, *TYPES)]


def _answers(value: Any) -> list[str] | str:
    """The answers in lower case, or why they cannot be used."""
    answers = [answer.lower() for answer in _texts(value)]
    if not any(answers):
        return "no answer"
    # As in VQA v2, one of ten people may have answered nothing; this keeps the weights of the
    # others. Elsewhere, an empty entry is a fault of the source.
    if not all(answers) and (None in value or len(answers) < NUM_ANNOTATORS):
        return "empty answer in a list"
    return answers


def _captions(row: Fields, row_id: str, form: RowForm) -> list[Result]:
    texts = _texts(row[form.text]) or [""]
    captions = list(filter(None, texts))
    ids = [row_id] if len(captions) == 1 else [f"{row_id}-{i}" for i in range(len(captions))]
    return [
        *(
            _with_rest({"id": caption_id, "caption": caption}, row, *form.named(), form.image)
            for caption_id, caption in zip(ids, captions, strict=True)
        ),
        *["no caption"] * (len(texts) - len(captions)),
    ]


def _judged(row: Fields, row_id: str, form: RowForm) -> list[Result]:
    """A sentence about the picture with its label; a statement becomes a question."""
    sentence = clean(str(row[form.text] or ""))
    if not sentence:
        return [f"no {form.task.text}"]
    annotation: Annotation = {"id": row_id, REQUIRED[form.task.kind]: sentence}
    if form.target is not None:
        label = label_of(row, form.target)
        if label not in form.task.labels:
            return [f"label {label}" if label else "no label"]
        annotation |= form.task.labels[label]
    return [_with_rest(annotation, row, *form.named(), form.image)]


def label_of(row: Fields, field: str) -> str:
    """The label of a row in lower case; "" if there is none."""
    return clean(text_of(row, field)).lower()


def _texts(value: Any) -> list[str]:
    """One text or a list of them, "" for null; answers may be JSON numbers."""
    values = value if isinstance(value, list) else [value]
    return ["" if text is None else clean(str(text)) for text in values]


def _with_rest(annotation: Annotation, row: Fields, *known: str) -> Annotation:
    """Add the row's other fields, if there are any."""
    extra = {name: value for name, value in row.items() if name not in known}
    return {**annotation, "source": extra} if extra else annotation


ENTAILMENT_LABELS = {label: {"label": label} for label in LABELS}
STATEMENT_LABELS = {
    word: {"answers": [truth], "label": soft_label([truth])} for word, truth in TRUTH.items()
}
"""A statement becomes a question with one of two answers."""
TASKS: Mapping[str, RowTask] = {
    "vqa": RowTask("vqa", "question", "answer", _question),
    "caption": RowTask("caption", "caption", None, _captions),
    "entailment": RowTask("entailment", "hypothesis", "label", _judged, ENTAILMENT_LABELS),
    "statement": RowTask("vqa", "statement", "label", _judged, STATEMENT_LABELS),
}
