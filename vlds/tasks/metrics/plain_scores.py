"""Scores that need no other program: exact match, its tables, overlap of boxes, words of captions.

Names of scores: "SCORE" is a plain score, "SCORE/TABLE/GROUP" is a cell of a table. Everything that
stores scores (metrics.jsonl, trackers, scores.json) holds names and numbers; the names alone say
which of them belong together. A group may contain slashes ("yes/no"), a score and a table may not.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import nan
from typing import TypeVar

Group = TypeVar("Group", str, int)


NUMBER = re.compile(r"-?\d+(\.\d+)?")
"""The name of a group that is a number."""


def table(score: str, by: str, groups: Mapping[str, float]) -> dict[str, float]:
    """Scores of groups under their full names: table("accuracy", "structural", {"query": 0.5})."""
    assert "/" not in score + by
    return {f"{score}/{by}/{group}": value for group, value in groups.items()}


def split(name: str) -> tuple[str, str, str] | None:
    """(score, table, group) of a cell's full name; None for a plain score."""
    score, *rest = name.split("/", 2)
    return (score, rest[0], rest[1]) if len(rest) == 2 else None


def plain(scores: Mapping[str, float]) -> dict[str, float]:
    """The scores that are not cells of a table."""
    return {name: value for name, value in scores.items() if split(name) is None}


def score_values(
    name: str,
    values: Mapping[str, Sequence[float]],
    groups_by: Callable[[str], Sequence[object]] = lambda by: (),
) -> list[float] | None:
    """Each example's value of a score. For a cell, examples of other groups are NaN. None for a
    score without values.

    `values`: score -> value of each example; `groups_by`: table -> group of each example.
    """
    # Groups are compared as texts: those of GQA's "steps" are numbers, and names hold "3".
    score, by, group = split(name) or (name, "", "")
    if score not in values:
        return None
    if not by:
        return list(values[score])
    pairs = zip(values[score], groups_by(by), strict=True)
    return [value if of is not None and str(of) == group else nan for value, of in pairs]


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes (left, top, width, height); 0 for boxes without area."""
    # Sides of the intersection: nearest far edge minus farthest near edge; negative if apart. The
    # boxes (0, 0, 2, 2) and (1, 1, 2, 2) share 1 of 7.
    width, height = (
        min(one[axis] + one[2 + axis], other[axis] + other[2 + axis]) - max(one[axis], other[axis])
        for axis in (0, 1)
    )
    shared = max(0.0, width) * max(0.0, height)
    whole = one[2] * one[3] + other[2] * other[3] - shared
    return shared / whole if whole > 0 else 0.0


def fold(text: str) -> str:
    """Lower case with single blanks, for comparing free answers."""
    return " ".join(text.lower().split())


def lower_line(text: str) -> str:
    """Lower case without blanks at the end: NLVR2's official script compares lines of a file so."""
    return text.rstrip().lower()


def matches(predictions: Iterable[str], answers: Iterable[str | None]) -> list[float]:
    """1.0 for a prediction that equals its answer character by character, as in GQA, else 0.0."""
    pairs = zip(predictions, answers, strict=True)
    return [float(prediction == answer) for prediction, answer in pairs]


def worth(prediction: str, label: Mapping[str, float]) -> float:
    """A prediction's score in a table of answers, ignoring case and white space; 0 if absent."""
    return {fold(answer): score for answer, score in label.items()}.get(fold(prediction), 0.0)


def mean(scores: Sequence[float]) -> float:
    """Mean score.

    Errors: ValueError if there are no scores.
    """
    if not scores:
        raise ValueError("predictions: got none; there is nothing to score")
    return sum(scores) / len(scores)


def mean_by_group(scores: Iterable[float], groups: Sequence[object]) -> dict[str, float]:
    """Mean score of each group, numbers first, then names; scores of group None do not count."""
    # As in `score_values`, 3 and "3" are one group.
    members = members_of(scores, [None if group is None else str(group) for group in groups])

    def order(name: str) -> tuple[bool, float, str]:
        is_number = NUMBER.fullmatch(name) is not None
        return not is_number, float(name) if is_number else 0.0, name

    return {name: mean(members[name]) for name in sorted(members, key=order)}


def consistency(scores: Iterable[float], groups: Sequence[Group | None]) -> float:
    """Share of the groups whose members are all correct.

    Errors: ValueError if there are no groups.
    """
    return mean([float(all(members)) for members in members_of(scores, groups).values()])


def members_of(scores: Iterable[float], groups: Sequence[Group | None]) -> dict[Group, list[float]]:
    # In the order in which groups come first: callers that print them sort.
    members: dict[Group, list[float]] = {}
    for score, group in zip(scores, groups, strict=True):
        if group is not None:
            members.setdefault(group, []).append(score)
    return members


# Caption scores on plain lower-case words. The CIDEr that papers quote uses a Java tokenizer
# (caption_scores.py); the same formula gives other numbers here, so it never has the official name.
# Document frequencies come from the scored references: CIDEr of parts of the data cannot be
# averaged, and on a handful of pictures it means nothing (on one picture it is 0). Word F1 suits
# small worlds (the demo), where CIDEr's document frequencies say little.
WORD = re.compile(r"\w+(?:'\w+)*")
MAX_N = 4

Ngram = tuple[str, ...]


def plain_tokens(text: str) -> list[str]:
    """Lower-case words without punctuation; an apostrophe inside a word stays."""
    return WORD.findall(text.lower())


def word_f1_values(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Each caption's F1 against the best of its references: 2 * common words / all words of both,
    with repeats; two empty texts are equal."""
    values = []
    for caption, given in zip(captions, references, strict=True):
        ours, best = Counter(plain_tokens(caption)), 0.0
        for reference in given:
            theirs = Counter(plain_tokens(reference))
            # `&` keeps the smaller count of each word: "red red" and "red" have one in common.
            total = ours.total() + theirs.total()
            best = max(best, 2 * (ours & theirs).total() / total if total else 1.0)
        values.append(best)
    return values


def plain_cider_values(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr's formula for each picture, in 0..10, with the document frequencies of all pictures."""
    ours = [ngrams(plain_tokens(text)) for text in captions]
    theirs = [[ngrams(plain_tokens(text)) for text in given] for given in references]
    frequency = Counter(ngram for given in theirs for ngram in {n for text in given for n in text})
    # An n-gram counts once per picture, however many of its captions have it.
    rarity = {n: math.log(len(captions)) - math.log(count) for n, count in frequency.items()}
    # As if one picture had it: the official scorer takes max(1, frequency).
    unseen = math.log(len(captions))

    def vector(counts: Counter[Ngram]) -> dict[Ngram, float]:
        return {ngram: count * rarity.get(ngram, unseen) for ngram, count in counts.items()}

    values = []
    for caption, given in zip(ours, theirs, strict=True):
        candidate = vector(caption)
        similarities = [similarity(candidate, vector(text), caption, text) for text in given]
        # The factor is the official scorer's: CIDEr lies in 0..10.
        values.append(10 * mean(similarities))
    return values


def ngrams(tokens: Sequence[str]) -> Counter[Ngram]:
    """Counts of all n-grams up to MAX_N."""
    return Counter(
        tuple(tokens[start : start + n])
        for n in range(1, MAX_N + 1)
        for start in range(len(tokens) - n + 1)
    )


def similarity(
    ours: dict[Ngram, float],
    theirs: dict[Ngram, float],
    our_counts: Counter[Ngram],
    their_counts: Counter[Ngram],
) -> float:
    """Mean over n of the clipped cosine, damped where the lengths differ."""
    # The official scorer measures length in bigrams.
    length = [sum(c for n, c in counts.items() if len(n) == 2)
              for counts in (our_counts, their_counts)]  # fmt: skip
    # CIDEr-D's Gaussian has a standard deviation of 6 words.
    damping = math.exp(-((length[0] - length[1]) ** 2) / (2 * 6.0**2))
    total = 0.0
    for n in range(1, MAX_N + 1):
        # Clipped: a caption gains nothing by repeating a word.
        dot = sum(min(value, theirs[key]) * theirs[key]
                  for key, value in ours.items() if len(key) == n and key in theirs)  # fmt: skip
        norms = [math.sqrt(sum(value**2 for key, value in side.items() if len(key) == n))
                 for side in (ours, theirs)]  # fmt: skip
        total += dot / (norms[0] * norms[1]) if norms[0] and norms[1] else 0.0
    return damping * total / MAX_N
