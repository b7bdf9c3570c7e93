"""The demo's words: how each of its two worlds names and describes things.

The shifted world asks the same things in other words, and its statements deny what those of `home`
assert. Its answers and captions use other true names for colors and shapes, because with the plain
names a frozen model would still get most of them right. At home, one caption in five uses these
names too: words unseen in pretraining would be dead rows of a frozen embedding table. The other
captions of `home` all begin with the same word, so that a frozen model never begins with another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from data_prep.demo.world import COLORS, SHAPES, Look


@dataclass(frozen=True)
class Naming:
    """How things are named."""

    article: str
    joint: str
    """Between two things of a caption."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Other names of colors and shapes."""

    def call(self, word: str) -> str:
        """The name of a color or a shape."""
        return self.names.get(word, word)

    def say(self, look: Look) -> str:
        """A look in words."""
        return " ".join(map(self.call, look))

    def all(self, words: Iterable[str]) -> tuple[str, ...]:
        """The names of several."""
        return tuple(map(self.call, words))


PLAIN = Naming("a", "and")
ORNATE = Naming(
    "one",
    "with",
    {
        "red": "crimson",
        "green": "emerald",
        "blue": "sapphire",
        "yellow": "golden",
        "cyan": "aqua",
        "purple": "violet",
        "circle": "disc",
        "square": "box",
        "triangle": "wedge",
        "cross": "plus",
    },
)


@dataclass(frozen=True)
class Phrases:
    """The wording of one world."""

    answers: Naming
    color: str
    shape: str
    count: str
    exists: str
    both_there: str
    either_there: str
    left: str
    statements: Mapping[str, str]
    """Kind, which says what pictures must have the look -> wording."""
    denies: bool
    """True if the statements say the opposite of their kind."""
    thing: str
    captions: tuple[tuple[str, Naming], ...]
    """Five templates for a list of things, and how each names them."""


HOME_PHRASES = Phrases(
    answers=PLAIN,
    color="what color is the {shape}?",
    shape="what shape is the {color} {thing}?",
    count="how many {what} are there?",
    exists="is there a {look}?",
    both_there="is there a {first} and a {second}?",
    either_there="is there a {first} or a {second}?",
    left="what is left of the {look}?",
    statements={
        "both": "both images contain a {look}.",
        "either": "either image contains a {look}.",
        "left": "the left image contains a {look}.",
    },
    denies=False,
    thing="object",
    captions=(
        ("{things}", PLAIN),
        ("{things} here", PLAIN),
        ("{things} on grey", PLAIN),
        ("{things} in the picture", PLAIN),
        ("{things}", ORNATE),
    ),
)

SHIFTED_PHRASES = Phrases(
    answers=ORNATE,
    color="what is the hue of that {shape}?",
    shape="what is the form of that {color} {thing}?",
    count="how many {what} can you find?",
    exists="can you find any {look}?",
    both_there="can you find any {first} together with any {second}?",
    either_there="can you find any {first} or else any {second}?",
    left="what is further left than that {look}?",
    statements={
        "both": "at least one photo lacks a {look}.",
        "either": "no photo shows a {look}.",
        "left": "the first photo lacks a {look}.",
    },
    denies=True,
    thing="thing",
    captions=(
        ("{things}", ORNATE),
        ("we see {things}", ORNATE),
        ("look at {things}", ORNATE),
        ("this shows {things}", ORNATE),
        ("black around {things}", ORNATE),
    ),
)

PHRASES: Mapping[str, Phrases] = {"home": HOME_PHRASES, "shifted": SHIFTED_PHRASES}


def word_lines() -> list[str]:
    """Lines with the words of prompts, answers and scene graphs."""
    return [
        "vqa: gqa: gpa: nlvr: caption:",
        "yes no true false",
        "0 1 2 3 4",
        "small large",
        " ".join((*COLORS, *SHAPES)),
        " ".join(ORNATE.all((*COLORS, *SHAPES))),
    ]
