"""The scores of captions, by name: the official ones, and those that need no Java.

The official ones (BLEU, METEOR, ROUGE-L, CIDEr, SPICE) are those of the package pycocoevalcap
behind its Penn Treebank tokenizer, which is a Java program: without Java none of them can be had.
`cider_plain_tokens` and `word_f1` are of our own, and never bear an official name.

Document frequencies, lengths and METEOR's statistics are those of all captions together, so none
of these scores may be averaged over parts of the data. What each picture adds to those that are
means over pictures is there all the same, by the document frequencies of all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vlds.metrics import coco_package, spice
from vlds.metrics.cider import plain_cider, plain_cider_values
from vlds.metrics.exact_match import mean
from vlds.metrics.meteor import meteor
from vlds.metrics.ptb_tokens import penn_treebank_tokens
from vlds.metrics.word_f1 import word_f1, word_f1_values

Values = Callable[[Sequence[str], Sequence[Sequence[str]]], list[float]]
"""(captions, references) -> what each picture adds to a score that is their mean."""
Scorer = Callable[[Sequence[str], Sequence[Sequence[str]]], dict[str, float]]
"""(tokenized captions, tokenized references) -> name -> score."""

CIDERS = {"CIDEr", "cider_plain_tokens"}
FEWEST_PICTURES = 3
"""With fewer, CIDEr has no document frequencies to speak of: on one picture it is 0 by its formula,
on two it only knows words of one and words of both."""


def missing_for(name: str) -> str | None:
    """What a score needs and does not find here, with the cure; None where it can be computed."""
    if name in PLAIN:
        return None
    return spice.missing() if name == "SPICE" else coco_package.missing()


def missing_by_default() -> str | None:
    """Which of the usual scores are left out here, with the cure; None where all are there."""
    if (missing := coco_package.missing()) is None:
        return None
    usual = ", ".join(name for name in OFFICIAL if name != "SPICE")
    return (
        f"left out are {usual}: {missing}; cider_plain_tokens is of other tokens and cannot be "
        "compared with CIDEr"
    )


def few_pictures(names: Sequence[str], pictures: int) -> list[str]:
    """What is to be said of the CIDEr of one picture or two."""
    few = CIDERS.intersection(names) if 0 < pictures < FEWEST_PICTURES else ()
    return [
        f"{name} of {pictures} pictures means nothing: it weighs words by pictures"
        for name in sorted(few)
    ]


def quick_scores() -> list[str]:
    """Scores for an evaluation in mid-training: seconds for thousands of pictures."""
    return ["cider_plain_tokens" if coco_package.missing() else "CIDEr", "word_f1"]


def all_scores() -> list[str]:
    """What can be computed here, the most quoted first; without SPICE."""
    if coco_package.missing():
        return list(PLAIN)
    return [*(name for name in OFFICIAL if name != "SPICE"), "word_f1"]


def caption_scores(
    names: Sequence[str], captions: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    """The named scores, in this order; each caption has at least one reference.

    Errors: ValueError where a score cannot be computed here, a picture has no reference, or there
    is nothing to score.
    """
    check(names, captions, references)
    official = {OFFICIAL[name]: None for name in names if name in OFFICIAL}
    found: dict[str, float] = {}
    if official:
        tokens = tokenized(captions, references)
        for scorer in official:
            found |= scorer(*tokens)
    found |= {name: PLAIN[name](captions, references) for name in names if name in PLAIN}
    return {name: found[name] for name in names}


def picture_values(
    name: str, captions: Sequence[str], references: Sequence[Sequence[str]]
) -> list[float] | None:
    """What each picture adds to the named score, which is their mean; None if it is not a mean.

    The document frequencies of CIDEr are those of all these pictures.

    Errors: as those of `caption_scores`.
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
    """All of them through the Penn Treebank tokenizer at once."""
    tokens = iter(penn_treebank_tokens([*captions, *(t for given in references for t in given)]))
    # Taken in the order in which they were laid flat.
    return [next(tokens) for _ in captions], [[next(tokens) for _ in given] for given in references]


def check(
    names: Sequence[str], captions: Sequence[str], references: Sequence[Sequence[str]]
) -> None:
    """Every caption has at least one reference, and every score can be computed here."""
    if len(captions) != len(references) or not captions:
        raise ValueError(
            f"captions: got {len(captions)} for {len(references)} pictures; give one each"
        )
    if empty := [number for number, given in enumerate(references) if not given]:
        raise ValueError(f"references: picture number {empty[0]} has none; leave it out")
    for name in names:
        if (missing := missing_for(name)) is not None:
            raise ValueError(f"{name}: {missing}")


def cider_values(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr of each picture, in 0..10."""
    from pycocoevalcap.cider.cider import Cider

    _, values = Cider().compute_score(*numbered(captions, references))
    return [float(value) for value in values]


def bleu(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """BLEU of 1 to 4 words, of the whole corpus, against the reference of the closest length."""
    from pycocoevalcap.bleu.bleu import Bleu

    found, _ = Bleu(4).compute_score(*numbered(captions, references), verbose=0)
    return {f"BLEU-{number}": float(score) for number, score in enumerate(found, 1)}


def rouge_l_values(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """ROUGE-L of each picture: longest common subsequences, recall weighed by beta 1.2."""
    from pycocoevalcap.rouge.rouge import Rouge

    _, values = Rouge().compute_score(*numbered(captions, references))
    return [float(value) for value in values]


def numbered(
    captions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """References and captions as pycocoevalcap takes them, by number of the picture."""
    truth = {number: list(given) for number, given in enumerate(references)}
    return truth, {number: [caption] for number, caption in enumerate(captions)}


VALUES: dict[str, Values] = {
    "CIDEr": cider_values,
    "ROUGE-L": rouge_l_values,
    "cider_plain_tokens": plain_cider_values,
    "word_f1": word_f1_values,
}
"""The official ones of tokenized captions."""
PLAIN: dict[str, Callable[[Sequence[str], Sequence[Sequence[str]]], float]] = {
    "cider_plain_tokens": plain_cider,
    "word_f1": word_f1,
}
OFFICIAL: dict[str, Scorer] = {
    "CIDEr": lambda captions, references: {"CIDEr": mean(cider_values(captions, references))},
    "BLEU-1": bleu,
    "BLEU-2": bleu,
    "BLEU-3": bleu,
    "BLEU-4": bleu,
    "METEOR": lambda captions, references: {"METEOR": meteor(captions, references)},
    "ROUGE-L": lambda captions, references: {"ROUGE-L": mean(rouge_l_values(captions, references))},
    "SPICE": lambda captions, references: {"SPICE": spice.spice(captions, references)},
}
NAMES = (*OFFICIAL, *PLAIN)
