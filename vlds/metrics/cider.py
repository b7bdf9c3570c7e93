"""CIDEr: agreement of a caption with human ones in n-grams, weighed by how rare they are.

`official_cider` is the number that papers quote: the Penn Treebank tokenizer (Java) and the scorer
of the package pycocoevalcap. Where either is missing, `plain_cider` computes the same formula on
plain words; its numbers differ and never bear the official name.

Document frequencies come from the references that are scored: CIDEr of parts cannot be averaged,
and on a handful of pictures it means nothing (on one it is 0).
"""

from __future__ import annotations

import importlib.util
import math
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vlds.metrics.exact_match import mean
from vlds.metrics.plain_tokens import plain_tokens

MAX_N = 4
LENGTH_SIGMA = 6.0
TOKENIZER_SECONDS = 1800

Ngram = tuple[str, ...]


def missing_for_official_cider() -> str | None:
    """What stands in the way of the official score, with the cure; None where nothing does."""
    if importlib.util.find_spec("pycocoevalcap") is None:
        return "the package pycocoevalcap is missing (pip install 'vlds[coco]')"
    if shutil.which("java") is None:
        return "java is missing (install a Java runtime, such as openjdk-17-jre-headless)"
    return None


def official_cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """CIDEr as pycocoevalcap computes it.

    Errors: ValueError where the package or Java is missing.
    """
    if (missing := missing_for_official_cider()) is not None:
        raise ValueError(f"CIDEr: {missing}")
    check(captions, references)
    from pycocoevalcap.cider.cider import Cider

    flat = [*captions, *(text for given in references for text in given)]
    tokenized = iter(penn_treebank_tokens(flat))
    # Popped in the order in which they were laid flat.
    result = {number: [next(tokenized)] for number in range(len(captions))}
    truth = {number: [next(tokenized) for _ in given] for number, given in enumerate(references)}
    return float(Cider().compute_score(truth, result)[0])


def penn_treebank_tokens(texts: Sequence[str]) -> list[str]:
    """Tokenize as pycocoevalcap does, one text in, one line of tokens out.

    Its own wrapper writes a temporary file into site-packages, and a text with a line break that
    only Java knows (U+2028, a carriage return) shifts all later ones by a line: here texts go
    through a pipe, white space is collapsed first, and the lines are counted.
    """
    from pycocoevalcap.tokenizer import ptbtokenizer

    jar = Path(ptbtokenizer.__file__).parent / ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(jar),
               "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase",
               "-encoding", "UTF-8"]  # fmt: skip
    lines = "".join(" ".join(text.split()) + "\n" for text in texts)
    done = subprocess.run(
        command, input=lines.encode(), capture_output=True, timeout=TOKENIZER_SECONDS
    )
    tokens = done.stdout.decode().split("\n")[:-1]
    if done.returncode != 0 or len(tokens) != len(texts):
        raise RuntimeError(
            f"the Penn Treebank tokenizer returned {len(tokens)} lines for {len(texts)} captions "
            f"(exit code {done.returncode}): {done.stderr.decode(errors='replace')[-500:]}"
        )
    dropped = set(ptbtokenizer.PUNCTUATIONS)
    return [" ".join(word for word in line.split() if word not in dropped) for line in tokens]


def plain_cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """CIDEr's formula on plain lower-cased words without punctuation; not the official score."""
    check(captions, references)
    ours = [ngrams(plain_tokens(text)) for text in captions]
    theirs = [[ngrams(plain_tokens(text)) for text in given] for given in references]
    frequency = Counter(ngram for given in theirs for ngram in {n for text in given for n in text})
    rarity = {n: math.log(len(captions)) - math.log(count) for n, count in frequency.items()}
    unseen = math.log(len(captions))

    def vector(counts: Counter[Ngram]) -> dict[Ngram, float]:
        return {ngram: count * rarity.get(ngram, unseen) for ngram, count in counts.items()}

    scores = []
    for caption, given in zip(ours, theirs, strict=True):
        candidate = vector(caption)
        scores.append(mean([similarity(candidate, vector(text), caption, text) for text in given]))
    return 10 * mean(scores)


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


def check(captions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Every caption has at least one reference."""
    if len(captions) != len(references) or not captions:
        raise ValueError(
            f"captions: got {len(captions)} for {len(references)} pictures; give one each"
        )
    if empty := [number for number, given in enumerate(references) if not given]:
        raise ValueError(f"references: picture number {empty[0]} has none; leave it out")
