"""NLVR2's consistency on the real sentences, grouped by id and by text."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.toys.files import read_lines
from vlds.tasks import NLVR2
from vlds.tasks.nlvr2 import sentence_group


def test_the_pair_is_left_out() -> None:
    assert sentence_group("dev-850-0-1") == sentence_group("dev-850-3-1") == "dev-850--1"
    assert sentence_group("dev-850-0-1") != sentence_group("dev-850-0-0")
    assert sentence_group("dev-850-0-1") != sentence_group("test1-850-0-1")
    assert sentence_group("my-own-7") is None


@pytest.fixture(scope="module")
def sentences(shared: Path) -> list[dict[str, str]]:
    file = shared / "data" / "nlvr2_text" / "balanced_dev.json"
    if not file.is_file():
        pytest.skip(f"no file {file}")
    return read_lines(file)


def test_real_sentences_are_scored_as_the_official_script_scores_them(
    sentences: list[dict[str, str]],
) -> None:
    rng = random.Random(0)
    predictions = {
        row["identifier"]: row["label"].lower() if rng.random() < 0.8
        else rng.choice(["true", "false"])
        for row in sentences
    }  # fmt: skip
    references = {
        row["identifier"]: {"answer": row["label"].lower(), "sentence": row["sentence"]}
        for row in sentences
    }
    # The official script's loop, and the same grouped by the sentence's text.
    correct = 0
    by_id: dict[str, bool] = {}
    by_text: dict[str, bool] = {}
    for row in sentences:
        split, number, _, sentence = row["identifier"].split("-")
        right = predictions[row["identifier"]] == row["label"].lower()
        correct += right
        for found, key in ((by_id, f"{split}-{number}--{sentence}"), (by_text, row["sentence"])):
            found[key] = found.get(key, True) and right
    assert (len(sentences), len(by_id), len(by_text)) == (2300, 1116, 1111)
    scores = NLVR2().score(predictions, references)
    assert scores == pytest.approx(
        {
            "accuracy": correct / 2300,
            "consistency": sum(by_id.values()) / 1116,
            "consistency_by_text": sum(by_text.values()) / 1111,
        }
    )
    assert scores["consistency"] != scores["consistency_by_text"]
    assert 0.7 < scores["consistency"] < scores["accuracy"]
