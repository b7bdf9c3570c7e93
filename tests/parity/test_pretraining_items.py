"""Answers are converted, and pictures become items, as in VL-T5's pre-training code.

An item is an annotation together with a task that trains on its data set. The original makes items
by its options `--losses`, `--itm_cocoonly` and the like; here a recipe names the data sets.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from data_prep.json_rows import JsonRow
from data_prep.official.pretraining import (
    CAPTIONS,
    QUESTIONS,
    Sentence,
    converted_answer,
    converted_label,
    sentences_of,
)
from tests.toys.recorded.case import FOLDER

SOURCES = sorted(FOLDER.rglob("pretrain_strings.json"))
Record = dict[str, Any]


@pytest.fixture(scope="module", params=SOURCES or [None], ids=lambda path: path and path.stem)
def recorded(request: pytest.FixtureRequest) -> Record:
    """A recorded file."""
    if request.param is None:
        pytest.skip("no pretrain_strings.json in VLDS_GOLDENS")
    path: Path = request.param
    record: Record = json.loads(path.read_text("utf-8"))
    return record


def test_answers(recorded: Record) -> None:
    assert len(recorded["convert_ans"]) >= 14
    for given, answer in recorded["convert_ans"].items():
        assert converted_answer(given) == answer


def test_labels(recorded: Record) -> None:
    """Also those that become empty; the datum has no two answers of one name."""
    answers, compared = set(recorded["answer_table"]), 0
    for expansion in recorded["expansions"]:
        if "qa" in expansion["losses"].split(","):
            for source, labels in expansion["labels_after"].items():
                raw = recorded["datum"]["labelf"][source]
                for given, label in zip(raw, labels, strict=True):
                    assert converted_label(given, answers) == pytest.approx(label, abs=1e-12)
                compared += 1
    assert compared >= 12


def test_expansions(recorded: Record) -> None:
    assert len(recorded["expansions"]) >= 6
    for expansion in recorded["expansions"]:
        losses, options = expansion["losses"].split(","), expansion["options"]
        kept = kept_sentences(recorded, with_answers="qa" in losses)
        ours = Counter(
            (sentence.id, sentence.text, sentence.source, loss, label_text(sentence, loss))
            for sentence in kept
            for loss in losses_of(sentence, losses, options)
        )
        image_id = recorded["datum"]["img_id"]
        for loss in {"ground_caption", "refer"} & set(losses):
            for number in range(options.get("ground_upsample", 1)):  # tasks.NAME.weight
                ours[f"{image_id}_{loss}_{number:03d}", "", "", loss, None] += 1
        assert ours == Counter(theirs(item) for item in expansion["items"])


def kept_sentences(recorded: Record, with_answers: bool) -> list[Sentence]:
    """Sentences that are not left out. Without the loss `qa` the original converts no answers, and
    each answer may be learnt."""
    raw = {name for labels in recorded["datum"]["labelf"].values() for of in labels for name in of}
    every = {converted_answer(name) for name in raw}
    answers = set(recorded["answer_table"]) if with_answers else every
    sentences = sentences_of(JsonRow(recorded["datum"], "datum"), answers)
    return [sentence for sentence in sentences if not sentence.fault]


def losses_of(sentence: Sentence, losses: list[str], options: Record) -> list[str]:
    """The losses whose data sets hold a sentence."""
    if sentence.source in QUESTIONS:
        if "qa" in losses:
            return ["qa"]
        # The original makes captions of questions then, unless told not to, and stops at them.
        return [] if options.get("caption_only") else ["lm"]
    sources = {"lm": CAPTIONS}
    for loss in ("itm", "caption"):
        sources[loss] = CAPTIONS[:1] if options.get(f"{loss}_cocoonly", True) else CAPTIONS
    return [loss for loss in sources if loss in losses and sentence.source in sources[loss]]


def label_text(sentence: Sentence, loss: str) -> str | None:
    """The label of a question that is asked."""
    return text_of(sentence.label) if loss == "qa" else None


def text_of(label: Mapping[str, float]) -> str:
    """A label as a text, without its scores' last bits."""
    scores = {answer: round(score, 9) for answer, score in label.items()}
    return json.dumps(scores, sort_keys=True)


def theirs(item: Record) -> tuple[str, str, str, str, str | None]:
    """A recorded item in the same form."""
    label = item["label"] if item["label"] is None else text_of(item["label"])
    is_sentence = item["task"] not in ("ground_caption", "refer")
    return (
        item["uid"],
        item["sent"] if is_sentence else "",
        item["text_source"] if is_sentence else "",
        item["task"],
        label,
    )
