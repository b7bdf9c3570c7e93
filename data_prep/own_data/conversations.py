"""A row of a user's file -> a conversation: turns with their pictures and clips in place.

Texts stay as they are written. Layouts: OpenAI's `messages`, the `conversations` of LLaVA and
ShareGPT, those of LLaMA-Factory and ms-swift (both of these, and instruction or query with
history), and a question with its answer. A turn has the form that templates of Hugging Face read:

    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..json_rows import RepeatedKey, shown
from ..packing.source import WHOLE, Span, parts_of

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
QUESTIONS = ("instruction", "query", "question")
ANSWERS = ("output", "response", "answer")
"""Fields of LLaMA-Factory's alpaca form, of ms-swift's older one, and of plain rows."""
MARK = re.compile("<(image|video|audio)>")
TEXT_PARTS = ("text", "input_text", "output_text")
UNREAD = ("tools", "audios", "audio")
"""Fields of a row whose meaning a conversation here cannot hold."""
OBJECT_MARKS = re.compile("<(bbox|ref-object)>")
"""What ms-swift replaces by the row's `objects`."""
UNREAD_IN_TURN = (
    "tool_calls", "function_call", "audio", "reasoning_content", "refusal",
    "images", "image", "videos", "video",
)  # fmt: skip
"""Pictures beside a turn's content, as Ollama writes them, have no place among its words."""
NAMED_IN_TEXT = re.compile("<img>[^<>]+</img>")
"""How files for the first Qwen-VL name a picture."""


@dataclass(frozen=True)
class Medium:
    """Pictures or clips, as rows name them."""

    noun: str
    fields: tuple[str, ...]
    """Fields of a row that may hold them."""
    parts: tuple[str, ...]
    """Types of the parts of a turn's content that show one."""


MEDIA: Mapping[str, Medium] = {
    "image": Medium("picture", ("images", "image"), ("image", "image_url", "input_image")),
    "video": Medium("clip", ("videos", "video"), ("video", "video_url", "input_video")),
}
"""Type of a part here, which is also the word of its mark -> what it shows."""
SPAN = ("video_start", "video_end")
"""Fields beside a clip, in its part or in the row, that say which seconds of it are meant."""


@dataclass(frozen=True)
class RowFields:
    """Fields that a user has named."""

    image: str | None = None
    video: str | None = None
    question: str | None = None
    answer: str | None = None

    def of(self, name: str, usual: tuple[str, ...]) -> tuple[str, ...]:
        named: str | None = getattr(self, name)
        return (named,) if named else usual


USUAL = RowFields()


class Shown(NamedTuple):
    """Where a picture or clip of a conversation comes from."""

    type: str
    """As in MEDIA."""
    source: Any
    """A path, bytes, or an object."""
    span: Span = WHOLE
    """Of a clip."""


class Unusable(Exception):
    """A conversation that cannot be kept whole; the message is the reason that is counted."""


@dataclass
class Conversation:
    """What a row holds."""

    turns: list[dict[str, Any]] = field(default_factory=list)
    shown: list[Shown] = field(default_factory=list)
    """Its pictures and clips, in the order of the turns."""
    consumed: set[str] = field(default_factory=set)
    """The row's fields that are in it."""
    moved: bool = False
    """The row does not say where its pictures or clips stand: they stand before the first
    question."""
    unkept: set[str] = field(default_factory=set)
    """Fields of the parts of its turns that nothing here holds, such as a picture's `detail`."""


def conversation_of(fields: Fields, named: RowFields = USUAL) -> Conversation:
    """Errors: Unusable."""
    talk = Conversation()
    for name in UNREAD:
        if fields.get(name):
            raise Unusable(f"{name}, which are not read")
    if repeated := next(_repeated(fields), None):
        raise Unusable(f"an object with {repeated!r} twice")
    unplaced: dict[str, list[Any]] = {}
    for kind, medium in MEDIA.items():
        names = named.of(kind, medium.fields)
        shown_in = [name for name in names if fields.get(name) not in (None, "", [])]
        if len(shown_in) > 1:
            raise Unusable(f"{medium.noun}s in {' and '.join(shown_in)}")
        given: Any = fields[shown_in[0]] if shown_in else []
        unplaced[kind] = list(given) if isinstance(given, list) else [given]
        talk.consumed |= {name for name in names if name in fields}
    messages = _messages(fields, talk, named)
    if fields.get("objects") and OBJECT_MARKS.search(str(messages)):
        raise Unusable("objects with marks in the texts, which are not read")
    for number, message in enumerate(messages, 1):
        talk.turns.append(_turn(message, talk))
        if (last := talk.turns[-1])["role"] == "assistant" and isinstance(last["content"], list):
            for part in last["content"]:
                if part["type"] in MEDIA:
                    raise Unusable(f"a {MEDIA[part['type']].noun} in an answer")
            last["content"] = "".join(part["text"] for part in last["content"])
        if talk.turns[-1]["role"] == "system" and number > 1:
            raise Unusable("a system message behind the first turn")
    placed = {shown.type for shown in talk.shown}
    moved = [kind for kind, sources in unplaced.items() if sources and kind not in placed]
    if moved:
        begin = [Shown(kind, None) for kind in moved for _ in unplaced[kind]]
        place = next((n for n, turn in enumerate(talk.turns) if turn["role"] == "user"), None)
        if place is None:
            raise Unusable("no question")
        before = sum(part["type"] in MEDIA for t in talk.turns[:place] for part in parts_of(t))
        first = talk.turns[place]
        first["content"] = [*({"type": shown.type} for shown in begin), *parts_of(first)]
        talk.shown[before:before], talk.moved = begin, True
    for kind, medium in MEDIA.items():
        missing = sum(shown.type == kind and shown.source is None for shown in talk.shown)
        if missing != (count := len(unplaced[kind])):
            raise Unusable(f"{_count(missing, 'mark')} for {_count(count, medium.noun)}")
    rest = {kind: iter(sources) for kind, sources in unplaced.items()}
    talk.shown = [
        shown if shown.source is not None else shown._replace(source=next(rest[shown.type]))
        for shown in talk.shown
    ]
    if any(fields.get(name) is not None for name in SPAN):
        if sum(shown.type == "video" for shown in talk.shown) != 1:
            raise Unusable(f"{' and '.join(SPAN)} without a single clip")
        talk.shown = [
            shown._replace(span=_span(fields)) if shown.type == "video" else shown
            for shown in talk.shown
        ]
    if not any(turn["role"] == "user" for turn in talk.turns):
        raise Unusable("no question")
    return talk


def _span(fields: Fields) -> Span:
    """Errors: Unusable for values that are not seconds."""
    start, end = (fields.get(name) for name in SPAN)
    try:
        span = Span(float(start or 0), None if end in (None, "") else float(end))
    except (TypeError, ValueError):
        raise Unusable(f"{' and '.join(SPAN)} that are not seconds") from None
    if not (0 <= span.start < math.inf) or (span.end is not None and not span.end > span.start):
        raise Unusable(f"{' and '.join(SPAN)} that end before they begin")
    return span


def _repeated(value: Any) -> Iterator[str]:
    """Keys that JSON objects inside a value have twice."""
    if isinstance(value, RepeatedKey):
        yield value.key
    if isinstance(value, (dict, list)):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _repeated(entry)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _messages(fields: Fields, talk: Conversation, named: RowFields) -> list[Fields]:
    """The turns of a row as its file has them, each with a role and content."""
    system = fields.get("system")
    if "system" in fields:
        talk.consumed.add("system")
    begin: list[Fields] = [{"role": "system", "content": system}] if system else []
    talks = [name for name in TALKS if isinstance(fields.get(name), list)]
    if len(talks) > 1:
        raise Unusable(f"both {' and '.join(talks)}")
    if talks:
        name = talks[0]
        talk.consumed.add(name)
        messages: list[Fields] = []
        for message in fields[name]:
            if not isinstance(message, dict):
                raise Unusable("a turn that is not an object")
            messages.append(message)
        return [*begin, *messages]
    questions, answers = named.of("question", QUESTIONS), named.of("answer", ANSWERS)
    for names, option in ((questions, "--question-field"), (answers, "--answer-field")):
        if len(filled := [name for name in names if fields.get(name) not in (None, "", [])]) > 1:
            raise Unusable(f"both {' and '.join(filled)}; name one of them by {option}")
    asked, told = (
        # One that says something goes before an empty one.
        next((n for n in names if fields.get(n) not in (None, "", [])), None)
        or next((n for n in names if fields.get(n) is not None), None)
        for names in (questions, answers)
    )
    if asked is None:
        raise Unusable(f"no {' and no '.join((*TALKS, named.question or 'question'))}")
    talk.consumed |= {asked, told or asked, "input", "history"}
    history = fields.get("history") or []
    pairs = history if isinstance(history, list) else [history]
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            raise Unusable("a history that is not pairs")
        begin += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    question, more = fields[asked], fields.get("input") or ""
    if not isinstance(question, str) or not isinstance(more, str):
        raise Unusable("an instruction that is not text")
    # As LLaMA-Factory puts them together.
    begin.append({"role": "user", "content": "\n".join(filter(None, (question, more)))})
    if told is not None and (answer := fields[told]) not in (None, ""):
        # Tables of answers have numbers.
        if isinstance(answer, bool) or not isinstance(answer, (str, int, float)):
            raise Unusable("an answer that is not text")
        if isinstance(answer, float) and not math.isfinite(answer):
            raise Unusable(f"an answer that is {answer}")
        begin.append({"role": "assistant", "content": str(answer)})
    return begin


def shown_value(value: Any) -> str:
    """A value of a row for a message; Parquet has values that JSON does not."""
    try:
        return shown(value)
    except TypeError:
        return f"{value!r:.60}"


def _turn(message: Fields, talk: Conversation) -> dict[str, Any]:
    """A turn in the form of this module; its pictures and clips go to `talk.shown`, with None for
    the source of one that is the row's next."""
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
    content = _parts(message.get(names[1]), talk)
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


def _parts(content: Any, talk: Conversation) -> list[dict[str, Any]]:
    """Texts, pictures and clips of a turn's content."""
    if isinstance(content, str):
        return _marked(content, talk.shown) or [{"type": "text", "text": ""}]
    if isinstance(content, dict):
        raise Unusable("a turn whose content is an object; write JSON as a text")
    if not isinstance(content, list):
        what = "without content" if content is None else f"whose content is {shown_value(content)}"
        raise Unusable(f"a turn {what}; write a text")
    parts: list[dict[str, Any]] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        medium = next((name for name, known in MEDIA.items() if kind in known.parts), None)
        if isinstance(part, str):
            parts += [{"type": "text", "text": part}]
        elif kind in TEXT_PARTS and isinstance(part.get("text"), str):
            parts += [{"type": "text", "text": part["text"]}]
            talk.unkept |= _filled(part) - {"type", "text"}
        elif medium is not None:
            span = _span(part) if medium == "video" else WHOLE
            source, of_source = _source(part, medium)
            talk.shown.append(Shown(medium, source, span))
            talk.unkept |= (_filled(part) - {"type", *_sources(medium), *SPAN}) | of_source
            parts.append({"type": medium})
        else:
            raise Unusable(f"a part of type {shown_value(kind)}")
    return parts or [{"type": "text", "text": ""}]


def _filled(part: Fields) -> set[str]:
    return {str(name) for name, value in part.items() if value is not None}


def _sources(medium: str) -> tuple[str, ...]:
    """Fields of a part that may say where its picture or clip comes from."""
    return (medium, f"{medium}_url", "url", "path", "bytes")


def _source(part: Fields, medium: str) -> tuple[Any, set[str]]:
    """Where the picture or clip of a part comes from, and what else that says; None: it is the
    row's next one."""
    for name in _sources(medium):
        if (value := part.get(name)) is not None:
            if isinstance(value, dict) and "url" in value:
                return value["url"], _filled(value) - {"url"}
            return value, set()
    return None, set()


def _marked(text: str, placed: list[Shown]) -> list[dict[str, Any]]:
    """A text with marks -> texts, pictures and clips."""
    if NAMED_IN_TEXT.search(text):
        raise Unusable("a picture named between <img> and </img>; write <image>, and images")
    # "a<image>b" -> "a", "image", "b".
    pieces: Sequence[str] = MARK.split(text)
    parts: list[dict[str, Any]] = []
    for number, piece in enumerate(pieces):
        if number % 2 == 0:
            if piece:
                parts.append({"type": "text", "text": piece})
        elif piece not in MEDIA:
            raise Unusable("sound, which is not read")
        else:
            placed.append(Shown(piece, None))
            parts.append({"type": piece})
    return parts
