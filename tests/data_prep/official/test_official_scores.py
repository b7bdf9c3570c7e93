"""Files of the official form -> shards -> references -> scores: the values of official scripts.

The expected values were printed by the publishers' scripts, which read the same made files:
vqaEval.py (GT-Vision-Lab/VQA), m4c_evaluators.py (facebookresearch/mmf), eval_predictions.py
(allenai/aokvqa) and evaluate_acc.py (lupantech/ScienceQA).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_prep.cli import main
from tests.toys import official_sets as made
from tests.toys.shards import packed
from vlds.tasks import VQA, DirectAnswer, MultipleChoice, Task, TextVQA


def references(task: Task, src: Path, words: str) -> dict[str, Any]:
    """Pack a split, and ask the task for the references of its examples."""
    out = src / "shards"
    assert main([*words.split(), "--src", str(src), "--out", str(out), "--workers", "1"]) == 0
    examples = [
        task.example("task", sample, number, None)
        for sample in packed(out).values()
        for number in range(len(sample.annotations))
    ]
    return {example.id: example.reference for example in examples}


def test_okvqa_is_scored_as_vqa(tmp_path: Path) -> None:
    said = {"516065": "Pony-tail", "516066": "surfing", "811": "1960", "812": "fire truck"}
    known = references(VQA(), made.write_okvqa(tmp_path), "okvqa --split val")
    scores = VQA().score(said, known)
    assert scores["vqa_accuracy"] == pytest.approx(0.9)
    table = "vqa_accuracy/question_type"
    assert {name: score for name, score in scores.items() if name.startswith(table)} == {
        f"{table}/Sports and Recreation": 1.0,
        f"{table}/Vehicles and Transportation": pytest.approx(0.6),
        f"{table}/Other": 1.0,
    }


TEXTVQA_SAID = ["the Nokia,", "1000", "macys", "stop", "Yes!", "3 o'clock"]
TEXTVQA_SCORES = [1.0, 0.9, 0.9, 0.6, 1.0, 0.0]


def test_textvqa_has_its_own_normal_form(tmp_path: Path) -> None:
    known = references(TextVQA(), made.write_textvqa(tmp_path), "textvqa --split val")
    ids = [str(34602 + number) for number in range(6)]
    said = dict(zip(ids, TEXTVQA_SAID, strict=True))
    score = "vqa_accuracy_textvqa"
    assert TextVQA().score(said, known)[score] == pytest.approx(sum(TEXTVQA_SCORES) / 6)
    for key, expected in zip(ids, TEXTVQA_SCORES, strict=True):
        one = TextVQA().score({key: said[key]}, {key: known[key]})
        assert one[score] == pytest.approx(expected), said[key]


AOKVQA_IDS = [row["question_id"] for row in made.AOKVQA_ROWS]


def test_aokvqa_direct_answers(tmp_path: Path) -> None:
    known = references(DirectAnswer(), made.write_aokvqa(tmp_path), "aokvqa --split val")
    assert [key for key in known if known[key] is None] == [AOKVQA_IDS[3]]
    answers = ["taxi", "train", "a friend", "van", "post"]
    scores = DirectAnswer().score(dict(zip(AOKVQA_IDS, answers, strict=True)), known)
    assert scores["vqa_accuracy_direct"] == pytest.approx(0.75)


SCIENCEQA_SCORES = {
    "accuracy": 33.33,
    "accuracy/subject/natural science": 37.5,
    "accuracy/subject/social science": 37.5,
    "accuracy/subject/language science": 25.0,
    "accuracy/hint/with": 41.67,
    "accuracy/picture/with": 33.33,
    "accuracy/context/none": 16.67,
    "accuracy/grades/1-6": 41.67,
    "accuracy/grades/7-12": 25.0,
    "accuracy/topic/biology": 37.5,
    "accuracy/topic/geography": 37.5,
    "accuracy/topic/verbs": 25.0,
}


def test_scienceqa_in_all_and_by_group(tmp_path: Path) -> None:
    src = made.write_scienceqa(tmp_path)
    known = references(MultipleChoice(), src, "scienceqa --split test --text-rows")
    sizes = {key: len(made.scienceqa_problem(int(key))["choices"]) for key in known}
    said = {key: "ABCDE"[int(key) * 7 // 5 % size] for key, size in sizes.items()}
    scores = MultipleChoice().score(said, known)
    rounded = {name: round(100 * scores[name], 2) for name in SCIENCEQA_SCORES}
    assert rounded == SCIENCEQA_SCORES
    others = {"accuracy/hint/without", "accuracy/picture/without", "accuracy/context/some"}
    assert scores.keys() - SCIENCEQA_SCORES.keys() == others


"""Sentence -> written box, of which MAttNet's computeIoU has 0.475, 0.747, 0.681 and 0.316."""
