"""Rows out of files in well-known forms: LLaVA's and ShareGPT's conversations, COCO's captions.

Each question with its answer becomes a row. The turns before it are left out: the tasks here ask
one question about one picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_prep.json_rows import JsonRow
from data_prep.own_data.row_annotations import FieldNames
from data_prep.own_data.rows import Row

TURNS = ("conversations", "messages")
"""Fields that hold the turns of a conversation."""
TURN_FIELDS = (("from", "value"), ("role", "content"))
"""Fields of a turn's speaker and text."""
ASKS, ANSWERS, SYSTEM = ("human", "user"), ("gpt", "assistant", "model", "chatgpt"), ("system",)
PICTURE_MARK = "<image>"


def plain_rows(task: str, rows: Sequence[Row], names: FieldNames, path: Path) -> Sequence[Row]:
    """Conversations and COCO's captions as rows with the fields in `names`; other rows as they
    are."""
    fields = rows[0].fields if rows else {}
    lists = {name for name, value in fields.items() if isinstance(value, list)}
    if len(rows) == 1 and {"images", "annotations"} <= lists:
        if names.caption is None:
            raise ValueError(f"{path} is in COCO's form, which holds captions: give --task caption")
        return list(_rows_of_coco(JsonRow(fields, f"{path}"), names.caption, names))
    if task in ("vqa", "caption") and not lists.isdisjoint(TURNS):
        return [made for row in rows for made in _rows_of_conversation(row, names)]
    return rows


def _rows_of_coco(content: JsonRow, caption: str, names: FieldNames) -> Iterator[Row]:
    """One row for each caption."""
    entries = content.array("annotations")
    if entries and not any(isinstance(entry, dict) and "caption" in entry for entry in entries):
        raise ValueError(
            f"{content.place} is in COCO's form and has no captions (boxes, key points or segments "
            "are not read); give the file of captions"
        )
    images = list(content.rows("images", "image", 1))
    pictures = {image.id("id"): (image.text("file_name"), image.fields) for image in images}
    for entry in content.rows("annotations", "annotation", 1):
        file, about = pictures.get(entry.id("image_id"), ("", {}))
        fields = {names.image: file, caption: entry.text("caption")}
        if names.split is not None:
            fields[names.split] = about.get(names.split, "")
        annotation_id = entry.id("id")
        if names.id is not None:
            fields[names.id] = entry.fields.get(names.id, annotation_id)
        yield Row(fields, annotation_id, "annotation", "" if file else "picture not in the file")


def _rows_of_conversation(row: Row, names: FieldNames) -> Iterator[Row]:
    """One row for each question and answer; an unusable conversation is one row with its fault."""
    pictures = row.fields.get(names.image, row.fields.get("images")) or []
    pictures = pictures if isinstance(pictures, list) else [pictures]
    turns = next((row.fields[name] for name in TURNS if name in row.fields), None)
    pairs = _pairs(turns)
    if not pictures:
        pairs = "no picture"
    elif len(pictures) > 1 or str(turns).count(PICTURE_MARK) > 1:
        pairs = "several pictures"
    consumed = (*TURNS, names.image, "images")
    extra = {name: value for name, value in row.fields.items() if name not in consumed}
    common = dict.fromkeys(names.named(), "") | extra
    if isinstance(pairs, str):
        yield Row(common, row.number, row.noun, fault=pairs)
        return
    for index, (question, answer) in enumerate(pairs):
        end = f"-{index}" if len(pairs) > 1 else ""
        # A caption has no question.
        texts = ((names.question, question), (names.answer, answer), (names.caption, answer))
        fields = common | {names.image: pictures[0]}
        fields |= {name: text for name, text in texts if name is not None}
        if names.id is not None:
            fields[names.id] = f"{row.fields.get(names.id, row.number)}{end}"
        yield Row(fields, f"{row.number}{end}", row.noun)


def _pairs(turns: Any) -> list[tuple[str, str]] | str:
    """Questions and their answers, or why there are none."""
    pairs = []
    question = None
    for turn in turns if isinstance(turns, list) else []:
        speaker, text = _speaker_and_text(turn)
        if text is None:
            return "a turn without text"
        if speaker in ASKS:
            question = text.replace(PICTURE_MARK, " ").strip()
        elif speaker in ANSWERS and question is not None:
            pairs.append((question, text))
            question = None
        elif speaker not in (*ANSWERS, *SYSTEM):
            return f"a turn of {speaker}"
    return pairs or "no question with an answer"


def _speaker_and_text(turn: Any) -> tuple[str, str | None]:
    fields = turn if isinstance(turn, dict) else {}
    for speaker, text_field in TURN_FIELDS:
        if speaker in fields:
            text = fields.get(text_field)
            return str(fields[speaker]), text if isinstance(text, str) else None
    return "", None
