"""Questions, statements and captions about the demo's scenes, in the words of a world.

The shifted world asks the same things in other words, and its statements deny what those of `home`
assert. Questions and statements name things plainly in both worlds. Answers and captions of the
shifted world use other true names for colors and shapes (`Naming`), because with the plain names a
frozen model would still get most of them right.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from random import Random

from .world import COLORS, LOOKS, SHAPES, Look, Scene


@dataclass(frozen=True)
class Naming:
    """Names of colors and shapes, and the words around them."""

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
    # One caption in five uses the other names: words unseen in pretraining would be dead rows of a
    # frozen embedding table. The others begin with the same word, so that a frozen model never
    # begins with another.
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


YES_NO = ("no", "yes")
NUMBERS = ("0", "1", "2", "3", "4")


@dataclass(frozen=True)
class SceneQuestion:
    kind: str
    question: str
    answer: str
    choices: tuple[str, ...]
    """What somebody might answer by mistake."""
    full_answer: str = ""


@dataclass(frozen=True)
class Statement:
    """A sentence about a pair of pictures."""

    kind: str
    look: Look
    text: str


def ask_vqa(scene: Scene, words: Phrases, rng: Random) -> list[SceneQuestion]:
    """Questions about color, shape, count and existence; those without a clear answer are left
    out."""
    asked = (
        _ask_look("color", scene, words, rng),
        _ask_look("shape", scene, words, rng),
        _ask_count(scene, words, rng),
    )
    # The answer is drawn first, so that yes and no are equally frequent. Sets are sorted before a
    # draw, because their order differs between processes.
    present = {thing.look for thing in scene}
    answer = rng.choice(YES_NO)
    look = rng.choice(sorted(present)) if answer == "yes" else absent_look(present, rng)
    exists = SceneQuestion("exists", words.exists.format(look=PLAIN.say(look)), answer, YES_NO)
    return [question for question in (*asked, exists) if question]


def _ask_look(kind: str, scene: Scene, words: Phrases, rng: Random) -> SceneQuestion | None:
    """The color of the only thing with some shape, or the shape of the only one of some color."""
    if kind == "color":
        given, phrase, answers = "shape", words.color, words.answers.all(COLORS)
    else:
        given, phrase, answers = "color", words.shape, words.answers.all(SHAPES)
    # "what color is the circle?" has an answer only if there is one circle.
    values = [getattr(thing, given) for thing in scene]
    single = sorted(value for value in set(values) if values.count(value) == 1)
    if not single:
        return None
    value = rng.choice(single)
    answer = getattr(scene[values.index(value)], kind)
    question = phrase.format(**{given: value}, thing=words.thing)
    return SceneQuestion(kind, question, words.answers.call(answer), answers)


def _ask_count(scene: Scene, words: Phrases, rng: Random) -> SceneQuestion:
    """Count everything, a color or a shape, which now and then is missing."""
    example = rng.choice(scene)
    # The question is answered with 0 now and then, or a model would learn that it never is.
    absent = [shape for shape in SHAPES if all(thing.shape != shape for thing in scene)]
    if absent and rng.random() < 0.15:
        what, count = _plural(rng.choice(absent)), 0
    else:
        of_color = sum(thing.color == example.color for thing in scene)
        of_shape = sum(thing.shape == example.shape for thing in scene)
        what, count = rng.choice(
            (
                (f"{words.thing}s", len(scene)),
                (f"{example.color} {words.thing}s", of_color),
                (_plural(example.shape), of_shape),
            )
        )
    return SceneQuestion("count", words.count.format(what=what), str(count), NUMBERS)


def ask_gqa(scene: Scene, words: Phrases, rng: Random) -> list[SceneQuestion]:
    """Two questions of logic, and what is left of something if that is one thing only."""
    asked = []
    present = {thing.look for thing in scene}
    makers = (("logicAnd", words.both_there), ("logicOr", words.either_there))
    for kind, phrase in makers if len(present) > 1 else ():
        answer = rng.choice(YES_NO)
        # A false `and` has one of the two looks, and so has a true `or`.
        if kind == "logicAnd" and answer == "yes":
            pair = rng.sample(sorted(present), 2)
        elif kind == "logicOr" and answer == "no":
            first = absent_look(present, rng)
            pair = [first, absent_look(present | {first}, rng)]
        else:
            pair = [rng.choice(sorted(present)), absent_look(present, rng)]
        rng.shuffle(pair)
        question = phrase.format(first=PLAIN.say(pair[0]), second=PLAIN.say(pair[1]))
        asked.append(SceneQuestion(kind, question, answer, YES_NO, f"{answer}."))
    # One answer only: the look is unique, one thing is left of it, and none is in its column, of
    # which `same_column` holds the thing itself.
    for thing in rng.sample(scene, len(scene)):
        left = [other for other in scene if other.column < thing.column]
        alike = [other for other in scene if other.look == thing.look]
        same_column = [other for other in scene if other.column == thing.column]
        if len(left) == len(alike) == len(same_column) == 1:
            look = PLAIN.say(thing.look)
            answer, shapes = words.answers.call(left[0].shape), words.answers.all(SHAPES)
            full = f"the {answer} is left of the {look}."
            asked.append(SceneQuestion("left", words.left.format(look=look), answer, shapes, full))
            break
    return asked


def state(look: Look, words: Phrases, rng: Random) -> Statement:
    """A statement about a look in a pair of pictures."""
    kind = rng.choice(("both", "either", "left"))
    return Statement(kind, look, words.statements[kind].format(look=PLAIN.say(look)))


def presence(kind: str, holds: bool, rng: Random) -> tuple[bool, bool]:
    """In which of the two pictures the look must be; most false cases are near misses."""
    one = rng.choice(((True, False), (False, True)))
    if kind == "both":
        return (True, True) if holds else one if rng.random() < 0.8 else (False, False)
    if kind == "left":
        return holds, rng.random() < 0.5
    if not holds:
        return False, False
    return one if rng.random() < 0.8 else (True, True)


def caption_scene(scene: Scene, words: Phrases) -> list[str]:
    """Five captions of everything in the scene, from left to right, without sizes."""
    captions = []
    for template, naming in words.captions:
        things = [f"{naming.article} {naming.say(thing.look)}" for thing in scene]
        captions.append(template.format(things=f" {naming.joint} ".join(things)))
    return captions


def absent_look(present: set[Look], rng: Random) -> Look:
    """A look that is not present; half the time its color or its shape is."""
    absent = [look for look in LOOKS if look not in present]
    near = [look for look in absent if any(look[0] == c or look[1] == s for c, s in present)]
    return rng.choice(near if near and rng.random() < 0.5 else absent)


def _plural(shape: str) -> str:
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"
