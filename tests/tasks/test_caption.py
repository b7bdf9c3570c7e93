"""Captions: training per caption, evaluation per picture, scores under their true names."""

from __future__ import annotations

import numpy as np
import pytest

from vlds.metrics.cider import missing_for_official_cider
from vlds.schema import Sample
from vlds.tasks import Caption

COLORS, SHAPES = ("red", "blue", "green"), ("dot", "box")
CAPTIONS = [f"a {color} {shape} here" for color in COLORS for shape in SHAPES]
REFERENCES = {str(number): [text, text.upper()] for number, text in enumerate(CAPTIONS)}


def test_training_has_one_example_a_caption_and_evaluation_one_a_picture() -> None:
    annotations = ({"id": "1", "caption": " a dot\n"}, {"id": "2", "caption": "a box"})
    sample = Sample("0", "toy", "image-9", "caption", (b"",), (), annotations)
    rng = np.random.default_rng(0)
    trained = [Caption().example("c", sample, number, rng) for number in range(2)]
    evaluated = Caption().example("c", sample, None, None)
    assert [(example.id, example.target) for example in trained] == [("1", "a dot"), ("2", "a box")]
    assert (evaluated.id, evaluated.reference) == ("image-9", ["a dot", "a box"])
    assert evaluated.prompt == "caption: "


def test_without_java_the_plain_score_never_bears_the_official_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    scores = Caption().score(dict(zip(REFERENCES, CAPTIONS, strict=True)), REFERENCES)
    assert list(scores) == ["cider_plain_tokens", "word_f1"]
    assert scores["cider_plain_tokens"] > 5
    assert scores["word_f1"] == 1.0


@pytest.mark.skipif(
    missing_for_official_cider() is not None, reason=str(missing_for_official_cider())
)
def test_with_java_the_official_score_comes_first() -> None:
    scores = Caption().score(dict(zip(REFERENCES, CAPTIONS, strict=True)), REFERENCES)
    assert list(scores) == ["CIDEr", "word_f1"]
    assert scores["CIDEr"] > 5
