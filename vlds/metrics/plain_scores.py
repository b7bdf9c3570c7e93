"""Caption scores on plain words, which need no Java: CIDEr's formula, and bag-of-words F1.

The CIDEr that papers quote uses a Java tokenizer (vlds/metrics/caption_scores.py). Here the same
formula runs on plain lower-case words. Its numbers differ, so it never has the official name.
Document frequencies come from the scored references: CIDEr of parts of the data cannot be averaged,
and on a handful of pictures it means nothing (on one picture it is 0).

Word F1 suits small worlds (the demo), where CIDEr's document frequencies say little.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from vlds.metrics.exact_match import mean

WORD = re.compile(r"\w+(?:'\w+)*")
MAX_N = 4
LENGTH_SIGMA = 6.0

Ngram = tuple[str, ...]


def plain_tokens(text: str) -> list[str]:
    """Lower-case words without punctuation; an apostrophe inside a word stays."""
    return WORD.findall(text.lower())


def word_f1_values(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """The F1 of each caption against the best of its references."""
    pairs = zip(captions, references, strict=True)
    return [max(f1(caption, reference) for reference in given) for caption, given in pairs]


def f1(caption: str, reference: str) -> float:
    """2 * common words / all words of both, with repeats; two empty texts are equal."""
    ours, theirs = Counter(plain_tokens(caption)), Counter(plain_tokens(reference))
    total = ours.total() + theirs.total()
    return 2 * (ours & theirs).total() / total if total else 1.0


def plain_cider_values(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr's formula for each picture, in 0..10, with the document frequencies of all pictures."""
    ours = [ngrams(plain_tokens(text)) for text in captions]
    theirs = [[ngrams(plain_tokens(text)) for text in given] for given in references]
    frequency = Counter(ngram for given in theirs for ngram in {n for text in given for n in text})
    rarity = {n: math.log(len(captions)) - math.log(count) for n, count in frequency.items()}
    unseen = math.log(len(captions))

    def vector(counts: Counter[Ngram]) -> dict[Ngram, float]:
        return {ngram: count * rarity.get(ngram, unseen) for ngram, count in counts.items()}

    values = []
    for caption, given in zip(ours, theirs, strict=True):
        candidate = vector(caption)
        similarities = [similarity(candidate, vector(text), caption, text) for text in given]
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
    damping = math.exp(-((length[0] - length[1]) ** 2) / (2 * LENGTH_SIGMA**2))
    total = 0.0
    for n in range(1, MAX_N + 1):
        dot = sum(min(value, theirs[key]) * theirs[key]
                  for key, value in ours.items() if len(key) == n and key in theirs)  # fmt: skip
        norms = [math.sqrt(sum(value**2 for key, value in side.items() if len(key) == n))
                 for side in (ours, theirs)]  # fmt: skip
        total += dot / (norms[0] * norms[1]) if norms[0] and norms[1] else 0.0
    return damping * total / MAX_N
