"""Tasks on clips: the input strings of VL-Adapter's video scripts, letter by letter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vlds.schema import Sample
from vlds.tasks import Task, VideoCaption, VideoQA

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


def test_four_choices_and_no_subtitles_do_as_well() -> None:
    example = VideoQA().example("how2qa", clip("video_qa", [question(list("wxyz"))]), 0, None)
    assert example.prompt == (
        "[Subs]  [Q] Who says no? [TS] (0.5-2) [Choices] a0: w. a1: x. a2: y. a3: z."
    )
    assert example.reference == "a1"


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


@pytest.mark.parametrize("task", [VideoQA(), VideoCaption()], ids=["qa", "caption"])
def test_settings_are_those_of_the_paper(task: Task) -> None:
    assert task.reduction == "example_mean"
    assert (task.max_prompt_tokens, task.max_target_tokens) == (600, 20)
    assert (task.decoding.num_beams, task.decoding.max_new_tokens) == (5, 19)
