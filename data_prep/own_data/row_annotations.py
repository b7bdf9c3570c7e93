"""What a row of your own data says about its picture, task by task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from data_prep.json_rows import clean
from data_prep.official.snli_ve import LABELS
from data_prep.own_data.rows import Fields
from data_prep.packing.annotation import NUM_ANNOTATORS, soft_label
from data_prep.packing.journal import Dropped
from data_prep.packing.source import TYPES, Annotation

Result = Annotation | str
"""An annotation, or the reason why there is none."""
TRUTH: Mapping[str, str] = {
    "true": "true", "yes": "true", "1": "true", "false": "false", "no": "false", "0": "false",
}  # fmt: skip
"""Labels of a true or a false statement -> the answer."""


@dataclass(frozen=True)
class FieldNames:
    """Which field of a row holds what."""

    image: str
    question: str | None = None
    answer: str | None = None
    """None: no answers (a test split)."""
    caption: str | None = None
    hypothesis: str | None = None
    """Of a sentence to judge, or a statement that is true or false."""
    label: str | None = None
    """None: no labels (a test split)."""
    id: str | None = None
    """None: rows are named by their line."""
    split: str | None = None

    def named(self) -> list[str]:
        """The fields every row must have."""
        return [name for name in vars(self).values() if name is not None]


def text_of(row: Fields, name: str) -> str:
    """A field as stripped text; "" for null."""
    return "" if row[name] is None else str(row[name]).strip()


def annotations_of(
    task: str, row: Fields, row_id: str, names: FieldNames
) -> list[Annotation | Dropped]:
    """The annotations of a row, and what cannot be used of it."""
    results = TASKS[task](row, row_id, names) if text_of(row, names.image) else ["no image"]
    return [Dropped(row_id, entry) if isinstance(entry, str) else entry for entry in results]


def _question(row: Fields, row_id: str, names: FieldNames) -> list[Result]:
    assert names.question is not None
    question = clean(str(row[names.question] or ""))
    if not question:
        return ["no question"]
    annotation: Annotation = {"id": row_id, "question": question}
    if names.answer is not None:
        answers = _answers(row[names.answer])
        if isinstance(answers, str):
            return [answers]
        annotation |= {"answers": answers, "label": soft_label(answers)}
    annotation |= {
        key: clean(str(row[key]))
        for key in TYPES
        if row.get(key) is not None and key not in names.named()
    }
    return [_with_rest(annotation, row, *names.named(), *TYPES)]


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


def _captions(row: Fields, row_id: str, names: FieldNames) -> list[Result]:
    assert names.caption is not None
    texts = _texts(row[names.caption]) or [""]
    captions = list(filter(None, texts))
    ids = [row_id] if len(captions) == 1 else [f"{row_id}-{i}" for i in range(len(captions))]
    return [
        *(
            _with_rest({"id": caption_id, "caption": caption}, row, *names.named())
            for caption_id, caption in zip(ids, captions, strict=True)
        ),
        *["no caption"] * (len(texts) - len(captions)),
    ]


def _judged(
    row: Fields,
    row_id: str,
    names: FieldNames,
    *,
    field: str,
    noun: str,
    labels: Mapping[str, Annotation],
) -> list[Result]:
    """A sentence about the picture with its label: the sentence becomes `field` of the annotation,
    and `labels` has the other fields for each known label."""
    assert names.hypothesis is not None
    annotation: Annotation = {"id": row_id, field: clean(str(row[names.hypothesis] or ""))}
    if not annotation[field]:
        return [f"no {noun}"]
    if names.label is not None:
        label = label_of(row, names.label)
        if label not in labels:
            return [f"label {label}" if label else "no label"]
        annotation |= labels[label]
    return [_with_rest(annotation, row, *names.named())]


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
TASKS: Mapping[str, Callable[[Fields, str, FieldNames], list[Result]]] = {
    "vqa": _question,
    "caption": _captions,
    "entailment": partial(_judged, field="hypothesis", noun="hypothesis", labels=ENTAILMENT_LABELS),
    "statement": partial(_judged, field="question", noun="statement", labels=STATEMENT_LABELS),
}
KINDS: Mapping[str, str] = {"statement": "vqa"}
"""Tasks whose annotations are of another kind: `VQA` trains on statements."""
KNOWN_LABELS: Mapping[str, tuple[str, ...]] = {"entailment": LABELS, "statement": tuple(TRUTH)}
"""Tasks with labels -> the labels that they know."""
