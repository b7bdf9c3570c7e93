"""Captions: training per caption, evaluation per picture, scores under their true names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vlds.report.scores import example_values, mean_of
from vlds.schema import Sample
from vlds.tasks import Caption, VideoCaption, VideoQA
from vlds.tasks.metrics import coco_package

needs_java = pytest.mark.skipif(
    coco_package.missing() is not None, reason=str(coco_package.missing())
)

COLORS, SHAPES = ("red", "blue", "green"), ("dot", "box")
CAPTIONS = [f"a {color} {shape} here" for color in COLORS for shape in SHAPES]
REFERENCES = {str(number): [text, text.upper()] for number, text in enumerate(CAPTIONS)}
PERFECT = dict(zip(REFERENCES, CAPTIONS, strict=True))


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
    for task in (Caption(), Caption().thorough()):
        scores = task.score(PERFECT, REFERENCES)
        assert list(scores) == ["cider_plain_tokens", "word_f1"]
        assert scores["cider_plain_tokens"] > 5
        assert scores["word_f1"] == 1.0


@needs_java
def test_with_java_the_official_score_comes_first() -> None:
    scores = Caption().score(PERFECT, REFERENCES)
    assert list(scores) == ["CIDEr", "word_f1"]
    assert scores["CIDEr"] > 5
    apart = {
        f"{key}-{n}": [text] for key, told in TOLD.items() for n, text in enumerate(told or [])
    }
    said = {key: SAID[key.partition("-")[0]] for key in apart}
    each = VideoCaption(score_each="description").score(SAID, TOLD)
    assert each == VideoCaption().score(said, apart)


def test_scores_that_need_java_are_refused_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert Caption().missing_for_scores() is None
    missing = Caption(scores=["word_f1", "METEOR"]).missing_for_scores()
    assert missing is not None
    assert missing.startswith("scores: METEOR was asked for, and ")
    assert "missing (" in missing


def test_unknown_scores_are_named() -> None:
    with pytest.raises(ValueError, match=r"^scores: got CIDER; there are CIDEr, BLEU-1"):
        Caption(scores=["word_f1", "CIDER"])


def test_clips_are_scored_behind_the_clean_up_of_value() -> None:
    """Every non-ASCII character becomes a space, in predictions and references."""
    references = {"1": ["Ann\u2019s caf\u00e9"], "2": ["a box"]}
    task = VideoCaption(scores=["word_f1"])
    assert task.score({"1": "Ann s caf", "2": "a\u2028box"}, references) == {"word_f1": 1.0}
    exact = Caption(scores=["word_f1"])
    assert exact.score({"1": "Ann s caf", "2": "a\u2028box"}, references)["word_f1"] < 1.0


TOLD = {
    "4": ["Ann waves at Bob from the door", "A woman waves", "Ann says hello and waves"],
    "6": ["Bob sits down on the sofa", "Bob sits"],
    "9": ["The dog runs across the street"],
    "11": None,
}
"""Clip -> its descriptions; the last clip has none."""
SAID = {"4": "Ann waves from the door", "6": "Bob sits on the sofa", "9": "a dog runs", "11": "x"}


def test_descriptions_are_scored_by_themselves() -> None:
    """As in VL-Adapter's validation of TVC, whose evaluation has one item per description, with the
    model's text for the clip."""
    plain = ["cider_plain_tokens", "word_f1"]
    task = VideoCaption(score_each="description", scores=plain)
    pairs = [(SAID[key], text) for key, given in TOLD.items() for text in given or []]
    scores = task.score(SAID, TOLD)
    assert len(pairs) == 6
    pooled = VideoCaption(scores=plain).score(SAID, TOLD)
    assert abs(pooled["cider_plain_tokens"] - scores["cider_plain_tokens"]) > 0.1
    # A task in which each description is a separate clip gives the same.
    apart = {f"{number}": [text] for number, (_, text) in enumerate(pairs)}
    said = {f"{number}": text for number, (text, _) in enumerate(pairs)}
    assert VideoCaption(scores=plain).score(said, apart) == scores
    for name, score in scores.items():
        values = example_values(task, name, SAID, TOLD, score)
        assert np.isnan(values).tolist() == [False, False, False, True]
        assert mean_of(values) == pytest.approx(score, rel=1e-12)


# Tasks on clips: the input strings of VL-Adapter's video scripts, letter by letter.

SUBTITLES = [
    {"text": " Howard: No. \n", "start": 0.0, "end": 1.2},
    {"text": "Leonard: Yes", "start": 1.2, "end": 3.0},
]


def clip(kind: str, annotations: list[dict[str, Any]], **extra: Any) -> Sample:
    features = np.zeros((64, 512), dtype=np.float16)
    return Sample("000000", "toy", "s01e01", kind, (), (features,), tuple(annotations), extra)


def question(choices: list[str]) -> dict[str, Any]:
    given = {"id": "122", "question": "Who says no?", "span": "0.5-2"}
    return {**given, "choices": choices, "answer_index": 1}


def test_a_question_has_subtitles_span_and_choices() -> None:
    asked = question(["Leonard", "Howard. ", "Penny..", "Raj", "S.H.I.E.L.D."])
    example = VideoQA(prompt="tvqa: ").example(
        "tvqa", clip("video_qa", [asked], subtitles=SUBTITLES), 0, np.random.default_rng(0)
    )
    assert example.prompt == (
        "[Subs] Howard: No. Leonard: Yes [Q] Who says no? [TS] (0.5-2) [Choices] a0: Leonard. "
        "a1: Howard. a2: Penny. a3: Raj. a4: S.H.I.E.L.D. tvqa: "
    )
    assert (example.target, example.weight) == ("a1", 1.0)


@pytest.mark.parametrize(
    ("extra", "prompt", "text"),
    [
        ({"span": [1.5, 9.0]}, "tvc: ", "[Subs] Howard: No. Leonard: Yes [TS] ([1.5, 9.0]) tvc: "),
        ({}, "yc2c: ", "[Subs] Howard: No. Leonard: Yes yc2c: "),
    ],
)
def test_a_description_has_a_span_where_the_clip_has_one(
    extra: dict[str, Any], prompt: str, text: str
) -> None:
    told = [{"id": "1", "caption": " Howard says no."}, {"id": "2", "caption": "A no."}]
    sample = clip("video_caption", told, subtitles=SUBTITLES, **extra)
    task = VideoCaption(prompt=prompt)
    trained = task.example("c", sample, 0, np.random.default_rng(0))
    evaluated = task.example("c", sample, None, None)
    assert (trained.prompt, trained.target) == (text, "Howard says no.")
    assert (evaluated.prompt, evaluated.reference) == (text, ["Howard says no.", "A no."])
