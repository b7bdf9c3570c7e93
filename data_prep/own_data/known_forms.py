"""Makes rows of files in well-known forms: LLaVA's and ShareGPT's conversations, COCO's captions.

Each question with its answer becomes a row. The turns before it are left out: the tasks here ask
one question about one picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.json_rows import JsonRow, RepeatedKey
from data_prep.own_data.row_annotations import RowForm, text_of
from data_prep.own_data.rows import Fields, Row

TURNS = ("conversations", "messages")
"""Fields that hold the turns of a conversation."""
TURN_FIELDS = (("from", "value"), ("role", "content"))
"""Fields of a turn's speaker and text."""
ASKS, ANSWERS, SYSTEM = ("human", "user"), ("gpt", "assistant", "model", "chatgpt"), ("system",)
PICTURE_MARK = "<image>"
UNANSWERED = "question without an answer"


class Exchange(NamedTuple):
    """A question with its answer; a turn that has no counterpart has a fault."""

    question: str
    answer: str = ""
    fault: str = ""


def plain_rows(rows: Sequence[Row], form: RowForm, path: Path) -> Sequence[Row]:
    """Conversations and COCO's captions as rows with the fields of `form`; other rows as they
    are."""
    fields = rows[0].fields if rows else {}
    lists = {name for name, value in fields.items() if isinstance(value, list)}
    if len(rows) == 1 and {"images", "annotations"} <= lists:
        if form.task.kind != "caption":
            raise ValueError(f"{path} is in COCO's form, which holds captions: give --task caption")
        return list(_rows_of_coco(JsonRow(fields, f"{path}"), form))
    if not form.task.labels and not lists.isdisjoint(TURNS):
        return [exchange for row in rows for exchange in _rows_of_conversation(row, form)]
    return rows


def _rows_of_coco(content: JsonRow, form: RowForm) -> Iterator[Row]:
    """One row for each caption."""
    entries = content.array("annotations")
    if entries and not any(isinstance(entry, dict) and "caption" in entry for entry in entries):
        raise ValueError(
            f"{content.place} is in COCO's form and has no captions (boxes, key points or segments "
            "are not read); give the file of captions"
        )
    pictures: dict[str, tuple[str, Fields]] = {}
    for image in content.rows("images", "image", 1):
        image_id = image.id("id")
        if image_id in pictures:
            raise ValueError(
                f"{image.place}: 'id' is {image_id}, which {pictures[image_id][0]!r} has already; "
                "ids of images must be unique"
            )
        pictures[image_id] = image.text("file_name"), image.fields
    for entry in content.rows("annotations", "annotation", 1):
        file, about = pictures.get(entry.id("image_id"), ("", {}))
        fields = {form.image: file, form.text: entry.text("caption")}
        if form.split is not None:
            fields[form.split] = about.get(form.split, "")
        annotation_id = entry.id("id")
        if form.id is not None:
            fields[form.id] = entry.fields.get(form.id, annotation_id)
        yield Row(fields, annotation_id, "annotation", "" if file else "picture not in the file")


def _rows_of_conversation(row: Row, form: RowForm) -> Iterator[Row]:
    """One row for each question with its answer, and for each turn that has no counterpart; an
    unusable conversation is one row. Rows that cannot be used have a fault."""
    pictures = row.fields.get(form.image, row.fields.get("images")) or []
    pictures = pictures if isinstance(pictures, list) else [pictures]
    turns = next((row.fields[name] for name in TURNS if name in row.fields), None)
    exchanges = _exchanges(turns)
    if not pictures and not form.text_rows:
        exchanges = "no picture"
    elif len(pictures) > 1 or str(turns).count(PICTURE_MARK) > 1:
        exchanges = "several pictures"
    consumed = (*TURNS, form.image, "images")
    common: dict[str, Any] = dict.fromkeys(form.named(), "")
    if form.id is not None:
        common[form.id] = row.number
    common |= {name: value for name, value in row.fields.items() if name not in consumed}
    if isinstance(exchanges, str):
        yield Row(common, row.number, row.noun, fault=exchanges)
        return
    for index, (question, answer, fault) in enumerate(exchanges):
        end = f"-{index}" if len(exchanges) > 1 else ""
        is_caption = form.task.target is None  # it has no question
        fields = common | {
            form.image: (pictures or [""])[0],
            form.text: answer if is_caption else question,
        }
        if form.target is not None:
            fields[form.target] = answer
        if end and form.id is not None and (row_id := text_of(common, form.id)):
            fields[form.id] = f"{row_id}{end}"
        yield Row(fields, f"{row.number}{end}", row.noun, fault)


def _exchanges(turns: Any) -> list[Exchange] | str:
    """The exchanges of a conversation, or why there are none."""
    exchanges = []
    question: str | None = None
    for turn in turns if isinstance(turns, list) else []:
        if isinstance(turn, RepeatedKey):
            return f"a turn with {turn.key!r} twice"
        speaker, text = _speaker_and_text(turn)
        if text is None:
            return "a turn without text"
        if speaker in ASKS:
            if question is not None:
                exchanges.append(Exchange(question, fault=UNANSWERED))
            question = text.replace(PICTURE_MARK, " ").strip()
        elif speaker in ANSWERS:
            fault = "answer without a question" if question is None else ""
            exchanges.append(Exchange(question or "", text, fault))
            question = None
        elif speaker not in SYSTEM:
            return f"a turn of {speaker}"
    if question is not None:
        exchanges.append(Exchange(question, fault=UNANSWERED))
    return exchanges or "no question with an answer"


def _speaker_and_text(turn: Any) -> tuple[str, str | None]:
    fields = turn if isinstance(turn, dict) else {}
    for speaker, text_field in TURN_FIELDS:
        if speaker in fields:
            text = fields.get(text_field)
            return str(fields[speaker]), text if isinstance(text, str) else None
    return "", None
