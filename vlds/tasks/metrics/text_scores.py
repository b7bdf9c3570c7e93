"""Scores of answers that are sentences, JSON, letters or boxes: each compares an answer with the
right one, and lies in 0..1.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any
from unicodedata import category, normalize

from rapidfuzz.distance import LCSseq, Levenshtein

from vlds.tasks.metrics.plain_scores import fold, overlap, plain_tokens

FENCES = (
    re.compile(r"```\w*\s*(.*?)\s*(?:```|$)", re.DOTALL),
    re.compile(r"```\w*\s*(.*)```", re.DOTALL),
)
"""The first fenced block, and all up to the last fence, since texts inside may have some, too."""
LETTER_FIRST = re.compile(r"[(*\"']*([A-Za-z])(?:[).:*\"']|[^\S\n]*(?:\n|$))")
LETTER_NAMED = re.compile(
    # In "the answer is a dog", `a` is an article.
    r"(?i:\banswer)(?:\s+is)?\s*[:=]?\s*[(*\"']*(?!a\s+\w)([A-Za-z])\b(?!')"
)
NUMBER = r"(-?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)"
BOX = re.compile(rf"(?<![\w.]){NUMBER}" + rf"[\s,;()\[\]]+{NUMBER}" * 3 + r"(?!\w)")
"""Four numbers with nothing but blanks and punctuation between them."""
PLACE_TOKEN = re.compile(r"<loc_?([0-9]+)>")
"""How PaliGemma and Florence-2 write a number."""
ALONE = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+"
)
"""Characters of Chinese and Japanese, which write no blanks between words; and what stands between
them."""
LEAST_ALIKE = 0.5
"""ANLS counts answers that are less alike as wrong."""


def exact_match(answer: str, right: str) -> float:
    """1 if they are equal, ignoring case and white space."""
    return float(_folded(answer) == _folded(right))


def _folded(text: str) -> str:
    """As `fold`; an accented letter is one character, however it is written."""
    return fold(normalize("NFC", text))


def rouge_l(answer: str, right: str) -> float:
    """F1 of the longest common subsequence of words (Lin, 2004); words are letters and digits, in
    lower case, of any script, and single characters of Chinese and Japanese. Without any words,
    texts are compared as they are."""
    words, wanted = (
        [part for word in _words(text) for part in ALONE.findall(word)] for text in (answer, right)
    )
    if not words or not wanted:
        return exact_match(answer, right)
    # precision = lcs / words and recall = lcs / wanted give F1 = 2 lcs / (words + wanted).
    return 2 * LCSseq.similarity(words, wanted) / (len(words) + len(wanted))


def _words(text: str) -> list[str]:
    """As `plain_tokens`, with the marks of letters, such as the vowels of Hindi and Thai and the
    accents of letters that are written as two characters: these are not among \\w."""
    text = normalize("NFC", text)
    marks = {character for character in text if category(character).startswith("M")}
    if not marks:
        return plain_tokens(text)
    letter = rf"[\w{''.join(map(re.escape, sorted(marks)))}]+"
    return re.findall(rf"{letter}(?:'{letter})*", text.lower())


def anls(answer: str, right: str) -> float:
    """Average normalised Levenshtein similarity (Biten et al., 2019), of one answer: 1 less the
    edits a character of the longer text, ignoring case and white space; 0 below a half."""
    alike = Levenshtein.normalized_similarity(_folded(answer), _folded(right))
    return alike if alike >= LEAST_ALIKE else 0.0


def json_fields(answer: str, right: str) -> float:
    """Share of the fields of both JSON values that are in both and equal. A field is a path to a
    text, number, truth value, null, or empty list or object; case counts. A right answer that is
    not JSON must be given exactly, but for blanks around it."""
    if (wanted := _parsed(right)) is None:
        return float(answer.strip() == right.strip())
    if (found := _parsed(answer)) is None:
        return 0.0
    fields, others = dict(_leaves(wanted[0])), dict(_leaves(found[0]))
    same = sum(path in others and _same(others[path], value) for path, value in fields.items())
    return same / len(fields.keys() | others.keys())


def _parsed(text: str) -> tuple[Any] | None:
    """The JSON value of a text, which may stand in a fenced block; None if it has none."""
    blocks = (fence.search(text) for fence in FENCES)
    for part in (text, *(block[1] for block in blocks if block)):
        with suppress(ValueError, RecursionError):
            return (json.loads(part),)
    return None


def _leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Paths and values of all fields of a JSON value."""
    if isinstance(value, dict) and value:
        for key, entry in value.items():
            yield from _leaves(entry, (*path, key))
    elif isinstance(value, list) and value:
        for number, entry in enumerate(value):
            yield from _leaves(entry, (*path, number))
    else:
        yield path, value


def _same(one: Any, other: Any) -> bool:
    # In Python, true equals 1, and NaN not itself.
    return isinstance(one, bool) == isinstance(other, bool) and bool(
        one == other or (one != one and other != other)
    )


def choice(answer: str, right: str) -> float:
    """1 if both name the same letter: the one behind "answer" or "answer is", or else one at the
    beginning that ends its line or has a bracket, point or colon behind it, as in "B", "(b)" or
    "B. a dog". A right answer without one is compared as a text."""
    if (wanted := _letter(right)) is None:
        return exact_match(answer, right)
    return float(_letter(answer) == wanted)


def _letter(text: str) -> str | None:
    found = LETTER_NAMED.search(text) or LETTER_FIRST.match(text.strip())
    return found[1].upper() if found else None


def box_iou(answer: str, right: str) -> float:
    """Overlap (intersection over union) of boxes: left, top, right and bottom, with blanks and
    punctuation between them, or as tokens such as <loc0123>. Of several, each right box is compared
    with the best one that is left; boxes without a partner count as 0. A right answer without a box
    is compared as a text."""
    wanted, found = _boxes(right), _boxes(answer)
    if not wanted or not found:
        return exact_match(answer, right)
    pairs = sorted(
        (
            (1.0 if a == b else overlap(a, b), i, j)
            for i, a in enumerate(wanted)
            for j, b in enumerate(found)
        ),
        reverse=True,
    )
    total, used, taken = 0.0, set[int](), set[int]()
    for value, i, j in pairs:
        if i not in used and j not in taken:
            total += value
            used.add(i)
            taken.add(j)
    return total / max(len(wanted), len(found))


def _boxes(text: str) -> list[tuple[float, float, float, float]]:
    """Boxes (left, top, width, height), whichever corner comes first."""
    boxes = []
    for found in BOX.finditer(PLACE_TOKEN.sub(r" \1 ", text)):
        a, b, c, d = map(float, found.groups())
        boxes.append((min(a, c), min(b, d), abs(c - a), abs(d - b)))
    return boxes


SCORES: Mapping[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "rouge_l": rouge_l,
    "anls": anls,
    "json": json_fields,
    "choice": choice,
    "box_iou": box_iou,
}
"""Name in a recipe -> what compares an answer with the right one."""
RIGHT_FROM: Mapping[str, float] = {
    "exact_match": 1,
    "anls": 1,
    "json": 1,
    "choice": 1,
    "box_iou": 0.5,
}
"""Score -> the least value of a right answer. None for ROUGE-L, which grades sentences."""
