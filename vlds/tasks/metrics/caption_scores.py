"""The scores of captions, by name: the official ones, and those that need no Java.

The official scores (BLEU, METEOR, ROUGE-L, CIDEr, SPICE) are those of the package pycocoevalcap
after its Penn Treebank tokenizer, a Java program: without Java there is none of them.
`cider_plain_tokens` and `word_f1` are our own and never have an official name.

Document frequencies, lengths and METEOR's statistics are those of all captions together, so these
scores must not be averaged over parts of the data. Scores that are means over pictures have a value
for each picture, computed with the document frequencies of all pictures.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO

from vlds.tasks.metrics import coco_package, spice
from vlds.tasks.metrics.plain_scores import mean, plain_cider_values, word_f1_values

JAR = "meteor-1.5.jar"
SEPARATOR = " ||| "


class Meteor:
    """A running METEOR 1.5, the Java program of pycocoevalcap, which answers line by line.

    It answers "SCORE ||| reference ||| ... ||| caption" with the statistics of that caption, and
    "EVAL ||| statistics ||| ..." with a score for each caption and then the score of all, which
    comes from the summed statistics: METEOR of parts of the data cannot be averaged.
    """

    def __init__(self, process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
        self.process = process
        self.errors = errors

    def score(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        """The score of all captions, each a line of tokens."""
        # Captions are cleaned as pycocoevalcap does it, references are not.
        statistics = [
            self.ask(["SCORE", *given, caption.replace("|||", "").replace("  ", " ")])
            for caption, given in zip(captions, references, strict=True)
        ]
        self.ask(["EVAL", *statistics])  # the first caption's score
        for _ in captions[1:]:
            self.answer()
        return float(self.answer())

    def ask(self, words: Sequence[str]) -> str:
        """Send a line and read one."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # the program has ended; `answer` says why
            self.process.stdin.write(SEPARATOR.join(words).encode() + b"\n")
            self.process.stdin.flush()
        return self.answer()

    def answer(self) -> str:
        """The next line.

        Errors: RuntimeError if the program has ended.
        """
        assert self.process.stdout is not None
        # Answers are never empty, so an empty line is the end of the stream.
        line = self.process.stdout.readline().decode().strip()
        if not line:
            code = self.process.wait(timeout=10)
            self.errors.seek(0)
            message = self.errors.read().decode(errors="replace")[-500:]
            raise RuntimeError(f"METEOR ended with exit code {code}: {message}")
        return line


@contextmanager
def running_meteor() -> Iterator[Meteor]:
    """Run METEOR inside the context. It takes seconds to start, and up to 2 GB."""
    # The two dashes stand for files of captions and references; -stdio reads lines instead.
    command = ["java", "-Xmx2G", "-Dfile.encoding=UTF-8", "-jar", JAR,
               "-", "-", "-stdio", "-l", "en", "-norm"]  # fmt: skip
    with (
        tempfile.TemporaryFile() as errors,  # a pipe that nobody reads would block it
        subprocess.Popen(
            command,
            cwd=coco_package.folder("meteor"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as process,
    ):
        try:
            yield Meteor(process, errors)
        finally:
            process.kill()
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # closing flushes what could not be written
                process.stdin.close()


Values = Callable[[Sequence[str], Sequence[Sequence[str]]], list[float]]
"""(captions, references) -> a value for each picture; the score is their mean."""
Scorer = Callable[[Sequence[str], Sequence[Sequence[str]]], dict[str, float]]
"""(tokenized captions, tokenized references) -> name -> score."""

CIDERS = {"CIDEr", "cider_plain_tokens"}


def missing_for(name: str) -> str | None:
    """What this machine lacks for a score, with the cure; None if it can be computed."""
    if name in PLAIN:
        return None
    return spice.missing() if name == "SPICE" else coco_package.missing()


def few_pictures(names: Sequence[str], pictures: int) -> list[str]:
    """A note for each CIDEr of one picture or two."""
    # CIDEr weighs words by how few pictures have them. On one picture it is 0 by its formula; on
    # two, a word has either one picture or both.
    few = CIDERS.intersection(names) if 0 < pictures < 3 else ()
    return [
        f"{name} of {pictures} pictures means nothing: it weighs words by pictures"
        for name in sorted(few)
    ]


def quick_scores() -> list[str]:
    """Scores for evaluation in training: seconds for thousands of pictures."""
    return ["cider_plain_tokens" if coco_package.missing() else "CIDEr", "word_f1"]


def all_scores() -> list[str]:
    """The scores that this machine can compute, the most quoted first; without SPICE."""
    if coco_package.missing():
        return list(PLAIN)
    return [*(name for name in OFFICIAL if name != "SPICE"), "word_f1"]


def caption_scores(
    names: Sequence[str], captions: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    """The named scores, in this order; each caption has at least one reference.

    Errors: ValueError if a score cannot be computed here, a picture has no reference, or there are
    no captions.
    """
    # Before the tokenizer starts Java: nothing runs for seconds to end in an error.
    check(names, captions, references)
    plain = captions, references
    official = tokenized(*plain) if any(name in OFFICIAL for name in names) else plain
    scores: dict[str, float] = {}
    for name in names:
        texts = plain if name in PLAIN else official
        if name in VALUES:
            scores[name] = mean(VALUES[name](*texts))
        # One scorer gives all four BLEUs, of which only the named ones are returned.
        elif name not in scores:
            scores |= CORPUS[name](*texts)
    return {name: scores[name] for name in names}


def picture_values(
    name: str, captions: Sequence[str], references: Sequence[Sequence[str]]
) -> list[float] | None:
    """The values of the pictures whose mean is the named score; None if it is not a mean.

    The document frequencies of CIDEr are those of all these pictures.

    Errors: as for `caption_scores`.
    """
    if name not in VALUES:
        return None
    check([name], captions, references)
    if name in OFFICIAL:
        captions, references = tokenized(captions, references)
    return VALUES[name](captions, references)


def tokenized(
    captions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    """All texts after the Penn Treebank tokenizer, which starts once for all of them."""
    flat = [*captions, *(text for given in references for text in given)]
    tokens = iter(coco_package.penn_treebank_tokens(flat))
    # The same order as in `flat`.
    return [next(tokens) for _ in captions], [[next(tokens) for _ in given] for given in references]


def check(
    names: Sequence[str], captions: Sequence[str], references: Sequence[Sequence[str]]
) -> None:
    """Errors: ValueError if a caption has no reference, or a score cannot be computed here."""
    if len(captions) != len(references) or not captions:
        raise ValueError(
            f"captions: got {len(captions)} for {len(references)} pictures; give one each"
        )
    if empty := [index for index, given in enumerate(references) if not given]:
        raise ValueError(f"references: picture number {empty[0]} has none; leave it out")
    for name in names:
        if (missing := missing_for(name)) is not None:
            raise ValueError(f"{name}: {missing}")


def cider_values(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr of each picture, in 0..10."""
    from pycocoevalcap.cider.cider import Cider

    _, values = Cider().compute_score(*numbered(captions, references))
    return [float(value) for value in values]


def rouge_l_values(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """ROUGE-L of each picture: longest common subsequences, recall weighted by beta 1.2."""
    from pycocoevalcap.rouge.rouge import Rouge

    _, values = Rouge().compute_score(*numbered(captions, references))
    return [float(value) for value in values]


def bleu(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """BLEU of 1 to 4 words over the whole corpus, against the reference of the closest length."""
    from pycocoevalcap.bleu.bleu import Bleu

    scores, _ = Bleu(4).compute_score(*numbered(captions, references), verbose=0)
    return {f"BLEU-{n}": float(score) for n, score in enumerate(scores, 1)}


def meteor(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    with running_meteor() as program:
        return {"METEOR": program.score(captions, references)}


def numbered(
    captions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """References and captions as pycocoevalcap takes them, by index of the picture."""
    truth = {index: list(given) for index, given in enumerate(references)}
    return truth, {index: [caption] for index, caption in enumerate(captions)}


VALUES: dict[str, Values] = {
    "CIDEr": cider_values,
    "ROUGE-L": rouge_l_values,
    "cider_plain_tokens": plain_cider_values,
    "word_f1": word_f1_values,
}
"""Scores that are means over pictures."""
CORPUS: dict[str, Scorer] = {
    **dict.fromkeys(("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"), bleu),
    "METEOR": meteor,
    "SPICE": lambda captions, references: {"SPICE": spice.spice(captions, references)},
}
"""Scores of the whole corpus."""
OFFICIAL = ("CIDEr", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "SPICE")
PLAIN = ("cider_plain_tokens", "word_f1")
NAMES = (*OFFICIAL, *PLAIN)
