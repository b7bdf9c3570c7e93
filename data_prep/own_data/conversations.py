"""A row of a user's file -> a conversation: turns with their pictures in place.

Texts stay as they are written. Layouts: OpenAI's `messages`, the `conversations` of LLaVA and
ShareGPT, and those of LLaMA-Factory and ms-swift (both of these, and instruction or query with
history). A turn has the form that templates of Hugging Face read:

    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data_prep.json_rows import RepeatedKey, shown
from data_prep.packing.source import parts_of

Fields = Mapping[str, Any]
TALKS = ("messages", "conversations")
"""Fields that hold the turns of a conversation."""
TURN_FIELDS = (("role", "content"), ("from", "value"))
"""Fields of a turn's speaker and text."""
SPEAKERS: Mapping[str, str] = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "chatgpt": "assistant",
    "bot": "assistant", "function_call": "assistant", "tool_call": "assistant",
    "tool": "tool", "observation": "tool", "function": "tool", "tool_response": "tool",
}  # fmt: skip
"""Speakers as files call them -> as a conversation does."""
QUESTIONS = ("instruction", "query")
ANSWERS = ("output", "response")
"""Fields of LLaMA-Factory's alpaca form and of ms-swift's older one."""
PICTURES = ("images", "image")
MARK = re.compile("<(image|video|audio)>")
TEXT_PARTS = ("text", "input_text", "output_text")
PICTURE_PARTS = ("image", "image_url", "input_image")
UNREAD = ("tools", "videos", "audios", "video", "audio")
"""Fields of a row whose meaning a conversation here cannot hold."""
UNREAD_IN_TURN = ("tool_calls", "function_call", "audio", "reasoning_content", "refusal")


class Unusable(Exception):
    """A conversation that cannot be kept whole; the message is the reason that is counted."""


@dataclass
class Conversation:
    """What a row holds."""

    turns: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[Any] = field(default_factory=list)
    """Where each picture comes from, in the order of the turns: a path, bytes, or an object."""
    consumed: set[str] = field(default_factory=set)
    """The row's fields that are in it."""
    moved: bool = False
    """The row does not say where its pictures stand: they stand before the first question."""


def conversation_of(fields: Fields, image_field: str | None = None) -> Conversation:
    """Errors: Unusable."""
    talk = Conversation()
    for name in UNREAD:
        if fields.get(name):
            raise Unusable(f"{name}, which are not read")
    if repeated := next(_repeated(fields), None):
        raise Unusable(f"an object with {repeated!r} twice")
    names = (image_field,) if image_field else PICTURES
    shown_in = [name for name in names if fields.get(name) not in (None, "", [])]
    if len(shown_in) > 1:
        raise Unusable(f"pictures in {' and '.join(shown_in)}")
    given: Any = fields[shown_in[0]] if shown_in else []
    unplaced = list(given) if isinstance(given, list) else [given]
    talk.consumed |= {name for name in names if name in fields}
    messages = _messages(fields, talk)
    placed: list[Any] = []
    """A picture's own source, or None for the next one of the row."""
    for number, message in enumerate(messages, 1):
        talk.turns.append(_turn(message, placed))
        if (last := talk.turns[-1])["role"] == "assistant" and isinstance(last["content"], list):
            if any(part["type"] == "image" for part in last["content"]):
                raise Unusable("a picture in an answer")
            last["content"] = "".join(part["text"] for part in last["content"])
        if talk.turns[-1]["role"] == "system" and number > 1:
            raise Unusable("a system message behind the first turn")
    missing = sum(source is None for source in placed)
    if unplaced and not placed:
        first = next((turn for turn in talk.turns if turn["role"] == "user"), None)
        if first is None:
            raise Unusable("no question")
        first["content"] = [*({"type": "image"} for _ in unplaced), *parts_of(first)]
        placed, missing, talk.moved = [None] * len(unplaced), len(unplaced), True
    if missing != len(unplaced):
        raise Unusable(f"{_count(missing, 'mark')} for {_count(len(unplaced), 'picture')}")
    rest = iter(unplaced)
    talk.pictures = [next(rest) if source is None else source for source in placed]
    if not any(turn["role"] == "user" for turn in talk.turns):
        raise Unusable("no question")
    return talk


def _repeated(value: Any) -> Iterator[str]:
    """Keys that JSON objects inside a value have twice."""
    if isinstance(value, RepeatedKey):
        yield value.key
    if isinstance(value, (dict, list)):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _repeated(entry)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _messages(fields: Fields, talk: Conversation) -> list[Fields]:
    """The turns of a row as its file has them, each with a role and content."""
    system = fields.get("system")
    if "system" in fields:
        talk.consumed.add("system")
    begin: list[Fields] = [{"role": "system", "content": system}] if system else []
    name = next((name for name in TALKS if isinstance(fields.get(name), list)), None)
    if name is not None:
        talk.consumed.add(name)
        messages: list[Fields] = []
        for message in fields[name]:
            if not isinstance(message, dict):
                raise Unusable("a turn that is no object")
            messages.append(message)
        return [*begin, *messages]
    asked, told = (
        next((name for name in names if fields.get(name) is not None), None)
        for names in (QUESTIONS, ANSWERS)
    )
    if asked is None:
        raise Unusable(f"no {' and no '.join(TALKS)}")
    talk.consumed |= {*QUESTIONS, *ANSWERS, "input", "history"}
    history = fields.get("history") or []
    pairs = history if isinstance(history, list) else [history]
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            raise Unusable("a history that is not pairs")
        begin += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    question, more = fields[asked], fields.get("input") or ""
    if not isinstance(question, str) or not isinstance(more, str):
        raise Unusable("an instruction that is no text")
    # As LLaMA-Factory puts them together.
    begin.append({"role": "user", "content": "\n".join(filter(None, (question, more)))})
    if told is not None and fields[told] not in (None, ""):
        begin.append({"role": "assistant", "content": fields[told]})
    return begin


def shown_value(value: Any) -> str:
    """A value of a row for a message; Parquet has values that JSON does not."""
    try:
        return shown(value)
    except TypeError:
        return f"{value!r:.60}"


def _turn(message: Fields, placed: list[Any]) -> dict[str, Any]:
    """A turn in the form of this module; its pictures' sources go to `placed`."""
    names = next((names for names in TURN_FIELDS if names[0] in message), None)
    if names is None:
        raise Unusable("a turn without a speaker")
    for name in UNREAD_IN_TURN:
        if message.get(name):
            raise Unusable(f"a turn with {name}")
    speaker = message[names[0]]
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        raise Unusable(f"a turn of {shown_value(speaker)}")
    turn: dict[str, Any] = {"role": SPEAKERS[speaker]}
    content = _parts(message.get(names[1]), placed)
    is_text = len(content) == 1 and content[0]["type"] == "text"
    turn["content"] = content[0]["text"] if is_text else content
    # OpenAI's files weigh a message by 0 or 1, ms-swift's by its loss.
    for name in ("weight", "loss"):
        if (value := message.get(name)) not in (None, 0, 1):
            raise Unusable(f"a turn with a {name} of {shown_value(value)}; 0 and 1 are read")
        if value == 0 and turn["role"] == "assistant" and value is not None:
            turn["learn"] = False
    rest = {k: v for k, v in message.items() if k not in (*names, "weight", "loss")}
    if rest := {key: value for key, value in rest.items() if value is not None}:
        turn["source"] = rest
    return turn


def _parts(content: Any, placed: list[Any]) -> list[dict[str, Any]]:
    """Texts and pictures of a turn's content."""
    if isinstance(content, str):
        return _marked(content, placed) or [{"type": "text", "text": ""}]
    if not isinstance(content, list):
        raise Unusable("a turn without text")
    parts: list[dict[str, Any]] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(part, str):
            parts += [{"type": "text", "text": part}]
        elif kind in TEXT_PARTS and isinstance(part.get("text"), str):
            parts += [{"type": "text", "text": part["text"]}]
        elif kind in PICTURE_PARTS:
            placed.append(_source(part))
            parts.append({"type": "image"})
        else:
            raise Unusable(f"a part of type {shown_value(kind)}")
    return parts or [{"type": "text", "text": ""}]


def _source(part: Fields) -> Any:
    """Where the picture of a part comes from; None: it is the row's next one."""
    for name in ("image", "image_url", "url", "path", "bytes"):
        if (value := part.get(name)) is not None:
            return value["url"] if isinstance(value, dict) and "url" in value else value
    return None


def _marked(text: str, placed: list[Any]) -> list[dict[str, Any]]:
    """A text with marks -> texts and pictures."""
    # "a<image>b" -> "a", "image", "b".
    pieces: Sequence[str] = MARK.split(text)
    parts: list[dict[str, Any]] = []
    for number, piece in enumerate(pieces):
        if number % 2 == 0:
            if piece:
                parts.append({"type": "text", "text": piece})
        elif piece != "image":
            raise Unusable(f"a {piece}")
        else:
            placed.append(None)
            parts.append({"type": "image"})
    return parts
