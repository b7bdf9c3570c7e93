"""What a chat template writes around the texts of conversations, in pieces that are put together
without asking the template again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

from vlds.schema import Piece, Speaker, Turn

Trim = Callable[[str], str]
TRIMS: tuple[Trim, ...] = (str, str.strip, str.lstrip, str.rstrip)
"""What templates may do with blanks around a text."""
PieceType = Literal["text", "image", "video"]
"""The word of templates for a piece of a turn's content."""
Shape = tuple[tuple[Speaker, tuple[PieceType, ...]], ...]
"""Each turn of a conversation: who speaks, and what the pieces of the content are. A template
writes the same around the texts of all conversations of one shape."""


def type_of(piece: Piece) -> PieceType:
    if piece is None:
        return "image"
    return "text" if isinstance(piece, str) else "video"


class Written(NamedTuple):
    """A conversation as a chat template writes it."""

    text: str
    places: list[tuple[int, int, int]]
    """Number of a text of the conversation, and where it begins and ends."""


class Said(NamedTuple):
    """The tokens of a conversation."""

    ids: list[int]
    learned: list[bool]
    """True for those of answers that are learned."""
    pictures: list[int]
    """How many pictures stand before each."""


class Form(NamedTuple):
    """What a chat template writes around the texts of a conversation."""

    pieces: tuple[str, ...]
    """Before, between and behind the places where texts stand."""
    numbers: tuple[int, ...]
    """Which text of the conversation stands at each place."""
    trims: tuple[Trim, ...]
    """What becomes of the blanks around each text."""

    def around(self, texts: Sequence[str]) -> Written:
        """The conversation with these texts."""
        text, places = self.pieces[0], []
        for number, piece in zip(self.numbers, self.pieces[1:], strict=True):
            inside = self.trims[number](texts[number])
            places.append((number, len(text), len(text) + len(inside)))
            text += inside + piece
        return Written(text, places)


class Around(NamedTuple):
    """What a chat template writes around an answer."""

    prompt: str
    """What asks for an answer that is still to be generated."""
    before: str
    """What stands before an answer that the conversation has. LLaVA-OneVision's template begins it
    otherwise than the prompt."""
    after: str

    @property
    def follows(self) -> bool:
        """True if answers stand behind their prompt, up to blanks."""
        return self.before.split() == self.prompt.split()


def places_inside(turn: Turn) -> list[int]:
    """Where in a turn's texts, put together, its pictures stand."""
    places, length = [], 0
    for piece in turn.content:
        if isinstance(piece, str):
            length += len(piece)
        else:
            places.append(length)
    return places


def harmless(text: str, control_words: Iterable[str]) -> str:
    """The text with a blank inside each control word, which tokenizers then read as plain text; or
    in place of it, if it is a single character."""
    for word in control_words:
        if word in text:
            text = text.replace(word, f"{word[0]} {word[1:]}" if word[1:] else " ")
    return text
