"""Scores of sentences, JSON, letters and boxes."""

from __future__ import annotations

import random

import pytest

from vlds.tasks.metrics.caption_scores import caption_scores
from vlds.tasks.metrics.plain_scores import (
    consistency,
    word_f1_values,
)
from vlds.tasks.metrics.text_scores import SCORES, anls, box_iou, choice, json_fields, rouge_l

WORDS = ("a", "red", "dog", "sits", "here", "Rot", "ROT")


@pytest.mark.parametrize("name", SCORES)
def test_the_right_answer_has_1_and_nothing_0(name: str) -> None:
    right = "B [10, 20, 30, 40]"
    assert SCORES[name](right, right) == 1.0
    assert SCORES[name]("", right) == 0.0


def longest(one: list[str], other: list[str]) -> int:
    """Of common subsequences, by the usual table."""
    row = [0] * (len(other) + 1)
    for a in one:
        before = 0
        for n, b in enumerate(other, 1):
            before, row[n] = row[n], before + 1 if a == b else max(row[n], row[n - 1])
    return row[-1]


def edits(one: str, other: str) -> int:
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for n, b in enumerate(other, 1):
            before, row[n] = row[n], min(row[n] + 1, row[n - 1] + 1, before + (a != b))
    return row[-1]


def test_rouge_l_and_anls_follow_their_definitions() -> None:
    draw = random.Random(0)
    for _ in range(200):
        one, other = ([draw.choice(WORDS) for _ in range(draw.randint(1, 7))] for _ in range(2))
        low, low_other = ([word.lower() for word in words] for words in (one, other))
        common = longest(low, low_other)
        precision, recall = common / len(one), common / len(other)
        f1 = 2 * precision * recall / (precision + recall) if common else 0.0
        assert rouge_l(" ".join(one), " ".join(other)) == pytest.approx(f1)
        text, right = " ".join(low), " ".join(low_other)
        alike = 1 - edits(text, right) / max(len(text), len(right))
        expected = alike if alike >= 0.5 else 0.0
        assert anls(" ".join(one), " ".join(other)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "right", "score"),
    [
        ("\N{THUMBS UP SIGN}", "\N{THUMBS DOWN SIGN}", 0.0),
        ("+", "+", 1.0),
        ("\u8fd9\u662f\u7ea2\u72d7", "\u8fd9\u662f\u84dd\u72d7", 3 / 4),
        # Vowels of Devanagari are marks: "kitab" is not "kutub".
        ("\u0915\u093f\u0924\u093e\u092c x", "\u0915\u0941\u0924\u0941\u092c x", 1 / 2),
        ("Caf\u00e9 l'\u00e9t\u00e9", "cafe\u0301 l'e\u0301te\u0301!", 1.0),
    ],
)
def test_words_of_any_script(answer: str, right: str, score: float) -> None:
    assert rouge_l(answer, right) == pytest.approx(score)


@pytest.mark.parametrize(
    ("answer", "right", "score"),
    [
        ('{"a": 1, "b": "x"}', '{"b": "x", "a": 1.0}', 1.0),
        ('```json\n{"a": 1}\n```', '{"a": 1}', 1.0),
        ('{"a": 1, "b": 2}', '{"a": 1}', 1 / 2),
        ('{"a": [1, 2, {"c": null}]}', '{"a": [1, 3, {"c": null}]}', 2 / 3),
        ('{"a": true}', '{"a": 1}', 0.0),
        ('{"a": []}', '{"a": {}}', 0.0),
        ("[1, 2", "[1, 2]", 0.0),
        ("Yes", "yes", 0.0),
        ('{"a": NaN}', '{"a": NaN}', 1.0),
        ('```json {"a": 1}```', '{"a": 1}', 1.0),
        ('```json\r\n{"a": 1}', '{"a": 1}', 1.0),
        ('{"a": "```py```", "b": 1}', '{"a": "```py```", "b": 2}', 1 / 2),
        ('Look:\n```json\n{"a": "x ``` y"}\n```\nSo.', '{"a":  "x ``` y"}', 1.0),
        ("```\n1\n```\nor\n```\n2\n```", "1", 1.0),
    ],
)
def test_json_is_compared_field_by_field(answer: str, right: str, score: float) -> None:
    assert json_fields(answer, right) == pytest.approx(score)


@pytest.mark.parametrize(
    ("answer", "right", "score"),
    [
        ("(b) a dog", "B", 1.0),
        ("B. a dog", "B", 1.0),
        ("Because", "B", 0.0),
        ("The answer is B.", "B", 1.0),
        ("Answer: (C)", "B", 0.0),
        ("A dog", "B", 0.0),
        ("b", "(B) red", 1.0),
        ("none", "None", 1.0),
        ("I think the answer is B", "B", 1.0),
        ("**B**", "B", 1.0),
        ("The correct answer is:\nB", "B", 1.0),
        ("A cat", "A dog on the beach", 0.0),
        ("X-mas", "x-ray", 0.0),
        ("A", "A, C", 0.0),
        ("The answer is a dog", "A", 0.0),
        ("the answer is (a) dog", "A", 1.0),
        ("the answer is b because", "B", 1.0),
        ("B\n\nBecause it barks.", "B", 1.0),
    ],
)
def test_letters(answer: str, right: str, score: float) -> None:
    assert choice(answer, right) == score


@pytest.mark.parametrize(
    ("answer", "right", "score"),
    [
        ("<box>0 0 2 2</box>", "[1, 1, 3, 3]", 1 / 7),
        ('[{"bbox_2d": [0, 0, 2, 2], "label": "dog"}]', "0,0,2,2", 1.0),
        ("0 0 2 2 and 5 5 6 6", "[0, 0, 2, 2]", 1 / 2),
        ("[5, 5, 6, 6], [0, 0, 2, 2]", "[0, 0, 2, 2], [5, 5, 6, 6]", 1.0),
        ("(0.5, 0.5) (1.5, 1.5)", "0.5 0.5 1.5 1.5", 1.0),
        ("no box", "0 0 1 1", 0.0),
        ("none", "nothing", 0.0),
        ("-1 -1 1 1", "-1 -1 1 1", 1.0),
        ("gibberish", "<loc0100><loc0200><loc0300><loc0400>", 0.0),
        ("<loc0000><loc0000><loc0002><loc0002>", "1 1 3 3", 1 / 7),
        (".6 .6 .9 .9", ".1 .1 .5 .5", 0.0),
        ("1e-1 0 1 1E+2", "0.1 0 1 100", 1.0),
        ('[{"label": "person 1", "bbox": [0, 0, 10, 10]}]', "1. [0,0,10,10]", 1.0),
        ("5 5 5 5", "5 5 5 5", 1.0),
        ("10 10 0 0", "0 0 10 10", 1.0),
    ],
)
def test_boxes(answer: str, right: str, score: float) -> None:
    assert box_iou(answer, right) == pytest.approx(score)


# Accuracy by equality.


def test_a_group_is_right_when_all_of_it_is() -> None:
    assert consistency([1.0, 1.0, 0.0, 1.0], ["a", "a", "b", "b"]) == 0.5
    with pytest.raises(ValueError, match="nothing to score"):
        consistency([], [])


# Word F1 of captions.


@pytest.mark.parametrize(
    ("caption", "reference", "expected"),
    [
        ("A red circle.", "a red circle", 1.0),
        ("circle red a", "a red circle", 1.0),  # order does not count
        ("a red circle", "a blue square", 2 * 1 / 6),
        ("red red red", "red", 2 * 1 / 4),  # repeats do
        ("the man's hat", "the mans hat", 2 * 2 / 6),
        ("", "a red circle", 0.0),
        ("", "", 1.0),
        ("...", "", 1.0),
    ],
)
def test_f1(caption: str, reference: str, expected: float) -> None:
    assert word_f1_values([caption], [[reference]]) == pytest.approx([expected])


def test_best_reference_counts() -> None:
    captions = ["a red circle", "nothing"]
    references = [["two squares", "a red circle"], ["a"]]
    assert caption_scores(["word_f1"], captions, references) == {"word_f1": 0.5}
