"""cider_plain_tokens is the official formula on plain words."""

from __future__ import annotations

import numpy as np
import pytest

from vlds.tasks.metrics import coco_package
from vlds.tasks.metrics.caption_scores import caption_scores
from vlds.tasks.metrics.plain_scores import plain_cider_values, plain_tokens

CAPTIONS = [f"a {color} {shape}" for color in ("red", "blue", "green") for shape in ("dot", "box")]
REFERENCES = [[text, text.replace("a ", "one small ")] for text in CAPTIONS]


@pytest.mark.skipif(coco_package.missing() is not None, reason=str(coco_package.missing()))
def test_plain_formula_equals_the_official_scorer_on_the_same_tokens() -> None:
    from pycocoevalcap.cider.cider import Cider

    captions = [*CAPTIONS, "", "a red red red dot and a red dot"]
    references = [*REFERENCES, ["a dot"], ["a red dot", "box"]]

    def lines(texts: list[str]) -> list[str]:
        return [" ".join(plain_tokens(text)) for text in texts]

    theirs, _ = Cider().compute_score(
        {number: lines(given) for number, given in enumerate(references)},
        {number: lines([text]) for number, text in enumerate(captions)},
    )
    assert plain_cider(captions, references) == pytest.approx(float(theirs), abs=1e-9)


def plain_cider(captions: list[str], references: list[list[str]]) -> float:
    return caption_scores(["cider_plain_tokens"], captions, references)["cider_plain_tokens"]


def dense_cider(captions: list[str], references: list[list[str]]) -> np.ndarray:
    """The paper's formulas (https://arxiv.org/abs/1411.5726) on dense tf-idf vectors, with the
    clipping and the Gaussian of CIDEr-D; spaces separate the words."""

    def grams(text: str, n: int) -> list[str]:
        words = text.split()
        return [" ".join(words[start : start + n]) for start in range(len(words) - n + 1)]

    values = np.zeros(len(captions))
    for n in range(1, 5):
        truth = [[grams(text, n) for text in given] for given in references]
        said = [grams(text, n) for text in captions]
        words = sorted({w for given in [*truth, said] for text in given for w in text})
        seen = np.array([sum(any(w in t for t in given) for given in truth) for w in words])
        idf = np.log(len(captions) / np.maximum(seen, 1))
        for number, given in enumerate(truth):
            ours = idf * [said[number].count(w) for w in words]
            for text, written in zip(given, references[number], strict=True):
                theirs = idf * [text.count(w) for w in words]
                norm = np.linalg.norm(ours) * np.linalg.norm(theirs)
                cosine = np.minimum(ours, theirs) @ theirs / norm if norm else 0.0
                gap = len(grams(captions[number], 2)) - len(grams(written, 2))
                values[number] += 10 / 4 * np.exp(-(gap**2) / 72) * cosine / len(given)
    return values


def test_values_of_pictures_are_those_of_the_formula() -> None:
    captions = [*CAPTIONS[1:], CAPTIONS[0], "", "a red red red dot and a red dot"]
    references = [*REFERENCES, ["a dot"], ["a red dot", "box"]]
    values = plain_cider_values(captions, references)
    assert values == pytest.approx(dense_cider(captions, references), abs=1e-9)
    assert len({round(value, 6) for value in values}) > 3
    assert np.mean(values) == pytest.approx(plain_cider(captions, references), abs=1e-12)


def test_the_truth_itself_has_the_most() -> None:
    assert plain_cider(CAPTIONS, [[text] for text in CAPTIONS]) == pytest.approx(7.5)
