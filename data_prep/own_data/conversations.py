"""Rows out of the files with which chat models are trained: LLaVA's and ShareGPT's conversations.

Each question with its answer becomes a row. What was said before is not part of it: the tasks here
ask one question about one picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from data_prep.own_data.row_annotations import FieldNames
from data_prep.own_data.rows import Fields, Row

TURNS = ("conversations", "messages")
"""Fields that hold the turns of a conversation."""
SIGNS = (("from", "value"), ("role", "content"))
"""What a turn calls its speaker and its text."""
ASKS, ANSWERS, SYSTEM = ("human", "user"), ("gpt", "assistant", "model", "chatgpt"), ("system",)
PLACE_OF_PICTURE = "<image>"


def are_conversations(rows: Sequence[Row]) -> bool:
    """Whether the first row holds turns."""
    return bool(rows) and any(isinstance(rows[0].fields.get(name), list) for name in TURNS)


def rows_of_conversations(rows: Sequence[Row], names: FieldNames) -> list[Row]:
    """One row for each question and answer, with the fields that `names` wants; a conversation that
    cannot be used is one row with its fault."""
    return [made for row in rows for made in _rows_of(row, names)]


def _rows_of(row: Row, names: FieldNames) -> Iterator[Row]:
    pictures = row.fields.get(names.image, row.fields.get("images")) or []
    pictures = pictures if isinstance(pictures, list) else [pictures]
    turns = next((row.fields[name] for name in TURNS if name in row.fields), None)
    pairs = _pairs(turns)
    if not pictures:
        pairs = "no picture"
    elif len(pictures) > 1 or str(turns).count(PLACE_OF_PICTURE) > 1:
        pairs = "several pictures"
    extra = {
        name: value
        for name, value in row.fields.items()
        if name not in (*TURNS, names.image, "images")
    }
    wanted = dict.fromkeys(names.named(), "") | extra
    if isinstance(pairs, str):
        yield Row(wanted, row.number, row.noun, fault=pairs)
        return
    for number, (question, answer) in enumerate(pairs):
        end = f"-{number}" if len(pairs) > 1 else ""
        fields = wanted | {names.image: pictures[0]} | _said(question, answer, names)
        if names.id is not None:
            fields[names.id] = f"{row.fields.get(names.id, row.number)}{end}"
        yield Row(fields, f"{row.number}{end}", row.noun)


def _said(question: str, answer: str, names: FieldNames) -> dict[str, str]:
    """The pair under the names of the task; a caption has no question."""
    said = ((names.question, question), (names.answer, answer), (names.caption, answer))
    return {name: text for name, text in said if name is not None}


def _pairs(turns: Any) -> list[tuple[str, str]] | str:
    """Questions and their answers, or why there are none."""
    pairs = []
    question = None
    for turn in turns if isinstance(turns, list) else []:
        speaker, text = _turn(turn)
        if text is None:
            return "a turn without text"
        if speaker in ASKS:
            question = text.replace(PLACE_OF_PICTURE, " ").strip()
        elif speaker in ANSWERS and question is not None:
            pairs.append((question, text))
            question = None
        elif speaker not in (*ANSWERS, *SYSTEM):
            return f"a turn of {speaker}"
    return pairs or "no question with an answer"


def _turn(turn: Any) -> tuple[str, str | None]:
    fields: Fields = turn if isinstance(turn, dict) else {}
    for speaker, text in SIGNS:
        if speaker in fields:
            said = fields.get(text)
            return str(fields[speaker]), said if isinstance(said, str) else None
    return "", None
