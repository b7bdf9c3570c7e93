"""Words that are hidden in a sentence, and the texts that T5 and BART read and write then."""

from __future__ import annotations

import re
from collections.abc import Sequence

SENTINEL = "<extra_id_{}>"
SENTINELS = re.compile(r"<extra_id_\d+>")
MASK = "<mask>"


def hidden_runs(permutation: Sequence[int], share: float) -> list[range]:
    """Runs of hidden words, from left to right: the first words of a permutation of their places
    are hidden."""
    runs: list[range] = []
    for place in sorted(permutation[: int(max(share * len(permutation), 1))]):
        if runs and runs[-1].stop == place:
            runs[-1] = range(runs[-1].start, place + 1)
        else:
            runs.append(range(place, place + 1))
    return runs


def infilling(words: Sequence[str], runs: Sequence[range]) -> tuple[str, str]:
    """The sentence with a sentinel for each run; the sentinels, each before the words of its run.
    No sentinel closes the list, unlike in T5's own pre-training."""
    sentinels = [SENTINEL.format(number) for number in range(len(runs))]
    pairs = zip(sentinels, runs, strict=True)
    target = [" ".join([mark, *words[run.start : run.stop]]) for mark, run in pairs]
    return replaced(words, runs, sentinels), " ".join(target)


def denoising(words: Sequence[str], runs: Sequence[range]) -> tuple[str, str]:
    """The sentence with a mask for each run; the sentence."""
    return replaced(words, runs, [MASK] * len(runs)), " ".join(words)


def replaced(words: Sequence[str], runs: Sequence[range], marks: Sequence[str]) -> str:
    """The sentence with a mark in the place of each run."""
    mark_at = {run.start: mark for run, mark in zip(runs, marks, strict=True)}
    hidden = {place for run in runs for place in run}
    shown = [mark_at.get(n, w) for n, w in enumerate(words) if n in mark_at or n not in hidden]
    return " ".join(shown)


def words_of(text: str) -> str:
    """A text as it is scored: without sentinels, which are lost in decoding, and in lower case."""
    return " ".join(SENTINELS.sub(" ", text).lower().split())
