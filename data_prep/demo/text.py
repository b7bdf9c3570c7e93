"""Questions, statements and captions about the demo's scenes, in the words of a world."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from data_prep.demo.phrases import PLAIN, Naming, Phrases
from data_prep.demo.world import COLORS, LOOKS, SHAPES, Look, Scene

YES_NO = ("no", "yes")
STATEMENTS = ("both", "either", "left")


@dataclass(frozen=True)
class Asked:
    """A question with its answer."""

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


def ask_vqa(scene: Scene, words: Phrases, rng: Random) -> list[Asked]:
    """Color, shape, count and existence; a kind the scene has no clear answer to is left out."""
    makers = (_ask_color, _ask_shape, _ask_count, _ask_exists)
    return [asked for make in makers if (asked := make(scene, words, rng))]


def _ask_color(scene: Scene, words: Phrases, rng: Random) -> Asked | None:
    single = _standing_alone([thing.shape for thing in scene])
    if not single:
        return None
    shape = rng.choice(single)
    answer = next(thing.color for thing in scene if thing.shape == shape)
    question = words.color.format(shape=shape)
    return Asked("color", question, words.answers.call(answer), words.answers.all(COLORS))


def _ask_shape(scene: Scene, words: Phrases, rng: Random) -> Asked | None:
    single = _standing_alone([thing.color for thing in scene])
    if not single:
        return None
    color = rng.choice(single)
    answer = next(thing.shape for thing in scene if thing.color == color)
    question = words.shape.format(color=color, thing=words.thing)
    return Asked("shape", question, words.answers.call(answer), words.answers.all(SHAPES))


def _ask_count(scene: Scene, words: Phrases, rng: Random) -> Asked:
    """Count a color, a shape or everything; what is not there is asked for now and then."""
    there = rng.choice(scene)
    about: tuple[tuple[str, Callable[[], int]], ...] = (
        (f"{words.thing}s", lambda: len(scene)),
        (f"{there.color} {words.thing}s", lambda: sum(t.color == there.color for t in scene)),
        (_plural(there.shape), lambda: sum(t.shape == there.shape for t in scene)),
    )
    absent = [shape for shape in SHAPES if all(thing.shape != shape for thing in scene)]
    if absent and rng.random() < 0.15:
        what, number = _plural(rng.choice(absent)), 0
    else:
        what, count = rng.choice(about)
        number = count()
    numbers = tuple(str(value) for value in range(5))
    return Asked("count", words.count.format(what=what), str(number), numbers)


def _ask_exists(scene: Scene, words: Phrases, rng: Random) -> Asked:
    there = {(thing.color, thing.shape) for thing in scene}
    answer = rng.choice(YES_NO)
    look = rng.choice(sorted(there)) if answer == "yes" else absent_look(there, rng)
    return Asked("exists", words.exists.format(look=PLAIN.say(look)), answer, YES_NO)


def ask_gqa(scene: Scene, words: Phrases, rng: Random) -> list[Asked]:
    """Two questions of logic, and what is left of something where that is one thing only."""
    makers = (("logicAnd", words.both_there), ("logicOr", words.either_there))
    asked = [
        question
        for kind, phrase in makers
        if (question := _ask_logic(kind, phrase, scene, rng)) is not None
    ]
    for thing in rng.sample(scene, len(scene)):
        left = [other for other in scene if other.column < thing.column]
        alike = [t for t in scene if (t.color, t.shape) == (thing.color, thing.shape)]
        below = [other for other in scene if other.column == thing.column]
        if len(left) == len(alike) == len(below) == 1:
            look = PLAIN.say((thing.color, thing.shape))
            answer, shapes = words.answers.call(left[0].shape), words.answers.all(SHAPES)
            full = f"the {answer} is left of the {look}."
            asked.append(Asked("left", words.left.format(look=look), answer, shapes, full))
            break
    return asked


def _ask_logic(kind: str, phrase: str, scene: Scene, rng: Random) -> Asked | None:
    """`and` fails by one of the two; `or` holds by one of the two. It takes two looks to ask."""
    there = {(thing.color, thing.shape) for thing in scene}
    if len(there) < 2:
        return None
    answer = rng.choice(YES_NO)
    if kind == "logicAnd" and answer == "yes":
        pair = rng.sample(sorted(there), 2)
    elif kind == "logicOr" and answer == "no":
        first = absent_look(there, rng)
        pair = [first, absent_look(there | {first}, rng)]
    else:
        pair = [rng.choice(sorted(there)), absent_look(there, rng)]
    rng.shuffle(pair)
    question = phrase.format(first=PLAIN.say(pair[0]), second=PLAIN.say(pair[1]))
    return Asked(kind, question, answer, YES_NO, f"{answer}.")


def state(look: Look, words: Phrases, rng: Random) -> Statement:
    """Something about a pair of pictures."""
    kind = rng.choice(STATEMENTS)
    return Statement(kind, look, words.statements[kind].format(look=PLAIN.say(look)))


def caption_scene(scene: Scene, words: Phrases) -> list[str]:
    """Five captions of everything in the scene, from left to right, without sizes."""
    return [carrier.format(things=_list(scene, naming)) for carrier, naming in words.captions]


def _list(scene: Scene, naming: Naming) -> str:
    things = [f"{naming.article} {naming.say((t.color, t.shape))}" for t in scene]
    return f" {naming.joint} ".join(things)


def absent_look(there: set[Look], rng: Random) -> Look:
    """A look that is not there; half the time its color or its shape is."""
    absent = [look for look in LOOKS if look not in there]
    near = [look for look in absent if any(look[0] == c or look[1] == s for c, s in there)]
    return rng.choice(near if near and rng.random() < 0.5 else absent)


def _standing_alone(values: list[str]) -> list[str]:
    return sorted(value for value in set(values) if values.count(value) == 1)


def _plural(shape: str) -> str:
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"
