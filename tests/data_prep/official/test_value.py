"""VALUE's video tasks: four choices or five, clips without subtitles, clips of any length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.cli import main
from tests.toys.files import json_lines, write
from vlds.tasks import VideoCaption, VideoQA

LENGTHS = {"s1": 10, "s2": 64, "s3": 100}
"""Clip -> rows of its features."""


@pytest.fixture
def src(tmp_path: Path) -> Path:
    """TVQA's layout with a question of How2QA's four choices, and TVC's and YC2C's moments."""
    src = tmp_path / "value"
    asked = {f"a{n}": f"Choice {n}." for n in range(5)} | {"q": "Who?", "show_name": "Friends"}
    four = {key: text for key, text in asked.items() if key not in ("a4", "show_name")}
    tvqa = [
        {"qid": 0, "ts": "1.5-3", "vid_name": "s1", "answer_idx": 4, **asked},
        {"qid": 7, "ts": "2-3", "vid_name": "s1", "answer_idx": 0, **asked},
        {"qid": 8, "ts": "2-3", "vid_name": "s3", "answer_idx": 1, **asked},
    ]
    write(src / "ann/tvqa/tvqa_train.jsonl", json_lines(tvqa))
    unlabelled = json_lines([{"qid": 9, "ts": "2-3", "vid_name": "s2", **asked}])
    write(src / "ann/tvqa/tvqa_test_release.jsonl", unlabelled)
    how2qa = json_lines([{"qid": 5, "ts": "0-1", "vid_name": "s1", "answer_idx": 3, **four}])
    write(src / "ann/how2qa_val_release.jsonl", how2qa)
    told = [{"desc": " Ann  waves.", "desc_id": 31, "type": "v"}, {"desc": "Hi", "desc_id": 32}]
    moment = {"vid_name": "s3", "duration": 9.5, "ts": [1, 2.5], "clip_id": 4}
    write(src / "ann/tvc/tvc_val_release.jsonl", json_lines([{**moment, "descs": told}]))
    write(src / "ann/tvc/tvc_test_release.jsonl", json_lines([moment]))
    step = {"vid_name": "s2", "clip_id": 6, "duration": 3, "descs": told[:1]}
    write(src / "ann/yc2c/yc2c_train_release.jsonl", json_lines([step]))
    lines = [{"text": " Oh\nno. ", "start": 0.0, "end": 1.0}, {"text": "Yes", "start": 1, "end": 2}]
    for videos in ("tv", "how2", "yc2"):
        write(src / f"ann/{videos}_subtitles.jsonl", json_lines([{"vid_name": "s1", "sub": lines}]))
        folder = src / "vis_features" / videos / "clip-vit"
        folder.mkdir(parents=True)
        for seed, (name, length) in enumerate(LENGTHS.items()):
            clip = np.random.default_rng(seed).normal(size=(length, 5)).astype(np.float16)
            np.savez(folder / f"{name}.npz", features=clip)
    return src


def test_questions_about_a_clip_are_one_sample(src: Path, pack_split: Any) -> None:
    samples = pack_split("value-tvqa --split train", src)
    assert sorted(samples) == ["s1", "s3"]
    sample = samples["s1"]
    assert sample.kind == "video_qa"
    assert [annotation["id"] for annotation in sample.annotations] == ["0", "7"]
    example = VideoQA(prompt="tvqa: ").example("tvqa", sample, 0, np.random.default_rng(0))
    assert example.prompt == (
        "[Subs] Oh no. Yes [Q] Who? [TS] (1.5-3) [Choices] a0: Choice 0. a1: Choice 1. "
        "a2: Choice 2. a3: Choice 3. a4: Choice 4. tvqa: "
    )
    assert example.target == "a4"
    assert samples["s3"].extra["subtitles"] == []


def test_four_choices(src: Path, pack_split: Any) -> None:
    (sample,) = pack_split("value-how2qa --split val", src).values()
    (annotation,) = sample.annotations
    assert len(annotation["choices"]) == 4
    assert annotation["answer_index"] == 3


def test_a_test_split_says_nothing(src: Path, pack_split: Any) -> None:
    (sample,) = pack_split("value-tvqa --split test", src).values()
    assert "answer_index" not in sample.annotations[0]
    assert VideoQA().example("tvqa", sample, 0, None).reference is None
    (moment,) = pack_split("value-tvc --split test", src, out="tvc").values()
    assert VideoCaption().example("tvc", moment, None, None).reference is None


def test_each_moment_is_a_sample(src: Path, pack_split: Any) -> None:
    samples = pack_split("value-tvc --split val", src)
    sample = samples["4"]
    assert sample.kind == "video_caption"
    assert sample.extra["span"] == [1.0, 2.5]
    captions = {a["id"]: a["caption"] for a in sample.annotations}
    assert captions == {"31": "Ann waves.", "32": "Hi"}
    (step,) = pack_split("value-yc2c --split train", src, out="yc2c").values()
    assert "span" not in step.extra
    assert step.annotations[0]["caption"] == "Ann waves."


def test_a_choice_that_is_not_there(src: Path, refused: Any) -> None:
    wrong = {"qid": 5, "q": "Who?", "ts": "0-1", "vid_name": "s1", "answer_idx": 2, "a0": "x"}
    write(src / "ann/how2qa_val_release.jsonl", json_lines([wrong]))
    given = ["--src", str(src), "--split", "val", "--out", str(src / "out")]
    refused(main(["value-how2qa", *given]), "question 5: answer_idx is 2, but it has 1 choices")


def test_an_empty_description_is_dropped(
    src: Path, tmp_path: Path, pack_split: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    told = [{"desc": " ", "desc_id": 31}, {"desc": "Hi", "desc_id": 32}]
    row = {"vid_name": "s2", "clip_id": 6, "duration": 3, "descs": told}
    file = write(src / "ann/yc2c/yc2c_train_release.jsonl", json_lines([row]))
    samples = pack_split("value-yc2c --split train", src)
    assert [a["id"] for a in samples["6"].annotations] == ["32"]
    assert "dropped: empty caption: 1" in capsys.readouterr().out
    given = ["--annotations", str(file), "--workers", "1"]
    assert main(["verify", str(tmp_path / "out"), *given]) == 0
