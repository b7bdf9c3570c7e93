"""The plain CIDEr is the official formula on other words."""

from __future__ import annotations

import pytest

from vlds.metrics import coco_package
from vlds.metrics.cider import plain_cider
from vlds.metrics.plain_tokens import plain_tokens

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


def test_plain_cider_orders_captions_by_quality() -> None:
    worse = [*CAPTIONS[1:], CAPTIONS[0]]
    assert plain_cider(CAPTIONS, REFERENCES) > plain_cider(worse, REFERENCES) > 0
    assert plain_cider(CAPTIONS, [[text] for text in CAPTIONS]) == pytest.approx(7.5)


def test_one_picture_scores_nothing() -> None:
    assert plain_cider(["a dog"], [["a dog"]]) == 0
