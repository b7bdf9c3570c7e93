"""CIDEr's formula on plain words: agreement in n-grams, weighed by how rare they are.

The number that papers quote reads through a Java tokenizer (vlds/metrics/caption_scores.py); where
that is missing, this is the same formula on plain lower-cased words. Its numbers differ, and never
bear the official name.

Document frequencies come from the references that are scored: CIDEr of parts cannot be averaged,
and on a handful of pictures it means nothing (on one it is 0).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from vlds.metrics.exact_match import mean
from vlds.metrics.plain_tokens import plain_tokens

MAX_N = 4
LENGTH_SIGMA = 6.0

Ngram = tuple[str, ...]


def plain_cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """CIDEr's formula on plain lower-cased words without punctuation; not the official score."""
    return mean(plain_cider_values(captions, references))


def plain_cider_values(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """The value of each picture, in 0..10, by the document frequencies of all of them."""
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
        found = [similarity(candidate, vector(text), caption, text) for text in given]
        values.append(10 * mean(found))
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
