"""VQA accuracy: every expected value is worked out by hand from the official script's rules."""

from __future__ import annotations

import pytest

from vlds.metrics.vqa_accuracy import normalise, question_accuracy, vqa_accuracy
from vlds.metrics.vqa_contractions import CONTRACTIONS

NORMALISED = [
    # A mark with no blank beside it becomes a blank, ...
    ("black-and-white", "black and white"),
    ("red,blue", "red blue"),
    ("semi;colon", "semi colon"),
    ("TV/DVD player", "tv dvd player"),
    ("x_y", "x y"),
    ("e@mail", "e mail"),
    ("back\\slash", "back slash"),
    ("`tick`", "tick"),
    ("<b>", "b"),
    ("{x}", "x"),
    ("[1]", "1"),
    ('"quoted"', "quoted"),
    ("what?", "what"),
    ("!", ""),
    ("-5", "5"),
    # ... with a blank anywhere beside one of its kind, all of its kind go, ...
    ("No, thanks", "no thanks"),
    ("well -known", "well known"),
    ("well- known-fact", "well knownfact"),
    ("what ? yes", "what yes"),
    ("t-shirt (blue)", "t shirt blue"),  # "(" has a blank beside it, ")" and "-" have none
    ("5 -", "5"),
    ("10 , 20", "10 20"),
    # ... and with a comma between digits anywhere, every mark goes.
    ("1,000", "1000"),
    ("100,000-200,000", "100000200000"),
    ("3,4 - 5", "34 5"),
    ("3.5,2", "3.52"),
    ("a/b 1,0", "ab 10"),
    # Periods go unless a digit follows; nothing looks at what stands before them.
    ("yes.", "yes"),
    ("U.S.A.", "usa"),
    ("...", ""),
    ("2.50", "2.50"),
    (".5", ".5"),
    ("5.", "5"),
    (". 5", "5"),
    ("v1.2.3", "v1.2.3"),
    ("e.g. 3", "eg 3"),
    ("." * 32, ""),
    ("." * 33, "."),  # 32 is the most that are removed
    # Other marks stay.
    ("it's 10:30", "it's 10:30"),
    ("50%", "50%"),
    ("$5.00", "$5.00"),
    ("rock & roll", "rock & roll"),
    # Number words, after the punctuation; articles, after the number words.
    ("two", "2"),
    ("None", "0"),
    ("ten", "10"),
    ("Twelve", "twelve"),
    ("two-three", "2 3"),
    ("no-one", "no 1"),
    ("a", ""),
    ("the the", ""),
    ("an apple", "apple"),
    ("a/c", "c"),
    ("a+b=c", "b c"),
    # Contractions are looked up word by word, in lower case.
    ("DONT", "don't"),
    ("don't", "don't"),
    ("isnt it, dont you", "isn't it don't you"),
    ("six oclock", "6 o'clock"),
    ("hes not an animal", "he's not animal"),
    ("y'allll", "y'all'll"),
    ("Im here", "im here"),  # the table's key is "Im", which no lower-cased word equals
    ("somebody'd", "somebodyd"),
    ("lets go", "lets go"),
    ("  spaced \t out ", "spaced out"),
]


@pytest.mark.parametrize(("raw", "expected"), NORMALISED)
def test_normalise(raw: str, expected: str) -> None:
    assert normalise(raw) == expected


SCORED = [
    # One, two, three, four of ten: (9 * 1/3) / 10, (2 * 1/3 + 8 * 2/3) / 10, (3 * 2/3 + 7) / 10, 1.
    ("cat", ["cat"] + ["dog"] * 9, 0.3),
    ("cat", ["cat"] * 2 + ["dog"] * 8, 0.6),
    ("cat", ["cat"] * 3 + ["dog"] * 7, 0.9),
    ("cat", ["cat"] * 4 + ["dog"] * 6, 1.0),
    ("cow", ["cat"] * 4 + ["dog"] * 6, 0.0),
    # All ten alike: nothing is normalised on either side.
    ("yes", ["yes"] * 10, 1.0),
    ("Yes", ["yes"] * 10, 0.0),
    ("yes.", ["yes"] * 10, 0.0),
    ("two", ["2"] * 10, 0.0),
    ("a dog", ["dog"] * 10, 0.0),
    ("a dog", ["a dog"] * 10, 1.0),
    # White space at the ends, line feeds and tabs go before the ten are compared.
    (" yes\n", ["yes"] * 9 + ["yes "], 1.0),
    ("Yes", ["yes"] * 9 + ["yes\t"], 0.0),
    ("hot\tdog", ["hot dog"] * 10, 1.0),
    ("hot  dog", ["hot dog"] * 10, 0.0),
    # One of them differs, if only by case: both sides are normalised.
    ("Yes", ["yes"] * 9 + ["no"], 1.0),
    ("Yes.", ["yes"] * 9 + ["YES"], 1.0),
    ("2.", ["2", "two", "Two"] + ["3"] * 7, 0.9),
    ("the black-and-white one", ["black and white 1"] * 4 + ["zebra"] * 6, 1.0),
    ("dont know", ["don't know", "Dont know"] + ["no"] * 8, 0.6),
    ("", ["."] + ["a"] + ["x"] * 8, 0.6),
]


@pytest.mark.parametrize(("prediction", "answers", "expected"), SCORED)
def test_question_accuracy(prediction: str, answers: list[str], expected: float) -> None:
    assert question_accuracy(prediction, answers) == pytest.approx(expected, abs=1e-12)


def test_means_overall_and_per_type() -> None:
    scores = vqa_accuracy(
        ["yes", "no", "cat"],
        [["yes"] * 10, ["yes"] * 10, ["cat"] * 3 + ["dog"] * 7],
        ["yes/no", "yes/no", "other"],
        ["is the", "are", None],
    )
    assert scores.overall == pytest.approx((1 + 0 + 0.9) / 3)
    assert scores.by_answer_type == pytest.approx({"other": 0.9, "yes/no": 0.5})
    assert scores.by_question_type == pytest.approx({"are": 0.0, "is the": 1.0})


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to score"):
        vqa_accuracy([], [], [], [])
    with pytest.raises(ValueError, match="raw answers"):
        question_accuracy("yes", [])


def test_every_contraction_differs_only_by_apostrophes() -> None:
    assert len(CONTRACTIONS) == 120
    for without, with_apostrophe in CONTRACTIONS.items():
        assert without.replace("'", "") == with_apostrophe.replace("'", "")
