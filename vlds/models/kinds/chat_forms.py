"""What a chat template writes around the texts of conversations, in pieces that are put together
without asking the template again."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
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


def harmless(
    text: str, control_words: Iterable[str], said: Sequence[tuple[int, int]]
) -> tuple[str, list[int]]:
    """A text with a blank inside each control word of which a part was said, not written by the
    template: tokenizers then read it as plain text. A blank replaces a control word of a single
    character. Also the places of the given text that have a blank before them, ascending. `said`:
    where the text was said, with its ends."""
    said = sorted(place for place in said if place[0] < place[1])
    ends = [end for _, end in said]
    letters, blanks = list(text), set[int]()
    for word in control_words:
        start = text.find(word)
        while start >= 0:
            touched = bisect_right(ends, start)
            # All others are the template's own.
            if touched < len(said) and (begin := said[touched][0]) < start + len(word):
                if len(word) == 1:
                    letters[start] = " "
                else:
                    blanks.add(max(start + 1, begin))
            start = text.find(word, start + 1)
    places = sorted(blanks)
    pieces = ("".join(letters[start:end]) for start, end in pairwise([0, *places, len(text)]))
    return " ".join(pieces), places
