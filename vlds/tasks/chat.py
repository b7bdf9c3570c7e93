"""Conversations: turns of several speakers, with pictures and clips between their words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import numpy as np

from vlds.runtime.checks import Count, guess
from vlds.schema import Clip, Decoding, Example, Piece, Sample, Speaker, Turn, plain_text
from vlds.tasks.answer_task import AnswerTask
from vlds.tasks.base import as_text, require_label
from vlds.tasks.class_output import ClassLoss
from vlds.tasks.metrics.text_scores import RIGHT_FROM, SCORES

SPEAKERS: tuple[Speaker, ...] = get_args(Speaker)


@dataclass(frozen=True, kw_only=True)
class Chat(AnswerTask):
    """Say what the assistant says in a conversation; scored by comparing its last answer.

    The loss of a conversation is the mean over the tokens of the answers that are learned, so that
    a turn counts by its length, and each conversation alike. In evaluation the model gets the true
    turns before the answer. Case and white space do not count in `exact_match`, `anls` and
    `rouge_l`; texts are learned as they were written.
    """

    kinds: ClassVar[tuple[str, ...]] = ("chat",)
    label_field: ClassVar[str] = "answer"
    class_loss: ClassVar[ClassLoss | None] = None
    tables: ClassVar[tuple[str, ...]] = ("turn",)

    learn: Literal["all", "last"] = "all"
    """Which answers of a conversation are learned: all, or the last one. Those that the data mark
    as not to be learned never are."""
    scores: list[str] = field(default_factory=lambda: ["exact_match", "rouge_l"])
    """exact_match, rouge_l, anls, json (share of equal fields), choice (letters), box_iou; the
    first stands for the task."""
    system: str = ""
    """System message of conversations that have none, and of questions to `vlds predict`."""
    prompt: str = ""
    """Text before the first question, trailing space included; "" for none."""
    max_prompt_tokens: Count = 2048
    """Longest conversation before the answer, in tokens of its texts: of a longer one, the oldest
    turns are left out whole, then the end of its last question."""
    max_target_tokens: Count = 1024
    """Longest answer to learn in tokens, special tokens included; longer ones are cut."""
    decoding: Decoding = field(default_factory=lambda: Decoding(max_new_tokens=256))
    """How the model's output becomes an answer; greedy, up to 256 tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.scores:
            if name not in SCORES:
                raise ValueError(
                    f"scores: '{name}' is unknown; {guess(name, SCORES)}choose from: "
                    f"{', '.join(SCORES)}"
                )
        if not self.scores:
            raise ValueError(f"scores: there are none; choose from: {', '.join(SCORES)}")

    def example(
        self, name: str, sample: Sample, annotation: int | None, rng: np.random.Generator | None
    ) -> Example:
        """The turns before the last answer, and this; in evaluation also the reference."""
        assert annotation is not None
        given = sample.annotations[annotation]
        turns = turns_of(given, len(sample.images) or len(sample.features))
        if self.learn == "last":  # the answer is the target, which is none of the turns
            turns = [turn._replace(learned=False) for turn in turns]
        if self.system and all(turn.speaker != "system" for turn in turns):
            turns.insert(0, Turn("system", (self.system,)))
        first = next((n for n, turn in enumerate(turns) if turn.speaker == "user"), None)
        if first is not None and self.prompt:
            turns[first] = _begun(turns[first], self.prompt)
        if rng is not None:
            require_label(given, self.label_field, sample)
        answer = given.get(self.label_field)
        # Scores have a table by this: later answers depend on the history.
        number = 1 + sum(turn.speaker == "assistant" for turn in turns)
        reference = {"answer": answer, "turn": number}
        return Example(
            given["id"],
            name,
            plain_text(turns),
            None if answer is None else as_text(answer),
            reference=None if answer is None or rng is not None else reference,
            turns=tuple(turns),
            learned=given.get("learn") is not False,
        )

    def example_values(self, texts: list[str], known: list[Any]) -> dict[str, list[float]]:
        pairs = list(zip(texts, (as_text(given["answer"]) for given in known), strict=True))
        return {name: [SCORES[name](*pair) for pair in pairs] for name in self.scores}

    def correct(self, prediction: str, reference: Any) -> bool | None:
        """By the first score; None if that does not tell."""
        name = self.scores[0]
        if name not in RIGHT_FROM:
            return None
        return SCORES[name](prediction, as_text(reference["answer"])) >= RIGHT_FROM[name]

    def answer_of(self, reference: Any) -> str | None:
        return as_text(reference["answer"])


def turns_of(given: Mapping[str, Any], num_pictures: int) -> list[Turn]:
    """The turns of an annotation with so many pictures, as `vlds data chat` writes them, or a
    question about all pictures.

    Errors: ValueError for another form, or another number of pictures.
    """
    # `vlds predict` asks one question about the pictures that it is given.
    if "turns" not in given:
        question = as_text(given["question"], "question")
        return [Turn("user", (*(None,) * num_pictures, question))]
    turns = [_turn(number, turn) for number, turn in enumerate(given["turns"], 1)]
    if not turns:
        raise ValueError("turns is [], one at least expected")
    # Pictures go to their places by number: one too few would move all that follow.
    if (count := sum(turn.num_pictures for turn in turns)) != num_pictures:
        raise ValueError(f"its turns name {count} pictures, and it has {num_pictures}")
    return turns


def _turn(number: int, given: Any) -> Turn:
    speaker, content = given["role"], given["content"]
    if speaker not in SPEAKERS:
        raise ValueError(f"turn {number}: role is {speaker!r:.60}; it knows {', '.join(SPEAKERS)}")
    pieces = content if isinstance(content, list) else [{"type": "text", "text": content}]
    said: list[Piece] = []
    for piece in pieces:
        if piece["type"] == "text":
            said.append(as_text(piece["text"], f"turn {number}"))
        elif piece["type"] == "image":
            said.append(None)
        elif piece["type"] == "video":
            said.append(_clip(number, piece))
        else:
            raise ValueError(
                f"turn {number}: a part of type {piece['type']!r:.60}; text, image or video"
            )
    return Turn(speaker, tuple(said), speaker == "assistant" and given.get("learn") is not False)


def _clip(number: int, given: Any) -> Clip:
    times, duration = given["times"], given["duration"]
    numbers = [*times, duration]
    if not times or not all(type(n) in (int, float) and math.isfinite(n) for n in numbers):
        raise ValueError(f"turn {number}: a clip at {numbers!r:.60}; seconds expected")
    if sorted(set(times)) != times or times[0] < 0 or duration <= 0:
        raise ValueError(f"turn {number}: a clip at {numbers!r:.60}; ascending seconds expected")
    return Clip(tuple(map(float, times)), float(duration))


def _begun(turn: Turn, begin: str) -> Turn:
    """A turn with a text before its first one."""
    place = next((n for n, piece in enumerate(turn.content) if isinstance(piece, str)), None)
    if place is None:
        return turn._replace(content=(*turn.content, begin))
    text = f"{begin}{turn.content[place]}"
    return turn._replace(content=(*turn.content[:place], text, *turn.content[place + 1 :]))
