"""What VL-T5's pre-training tasks hide, draw, ask and score."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.toys.task_samples import sample_of
from vlds.recipe.build import build as built
from vlds.schema import Sample, SkipSample
from vlds.tasks import VQA, GroundedCaption, Matching, SpanPrediction, Task, VisualGrounding
from vlds.tasks.base import ask
from vlds.tasks.grounding import POINTERS

SENTENCE = "a man riding a wave on top of a surfboard"
T5, BART = SpanPrediction(), SpanPrediction(target="sentence", share=0.3, prompt="denoise text: ")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def captioned(*captions: str) -> Sample:
    rows = tuple({"id": f"c{n}", "caption": text} for n, text in enumerate(captions))
    return replace(sample_of("caption"), annotations=rows)


def with_regions(*names: str) -> Sample:
    return replace(sample_of("regions"), annotations=({"id": "g", "regions": list(names)},))


def test_t5_writes_the_hidden_words_behind_sentinels() -> None:
    example = replace(T5, share=0.5).example("lm", captioned(SENTENCE), 0, rng(3))
    assert example.prompt.startswith("span prediction: ")
    words = example.prompt.removeprefix("span prediction: ").split()
    assert example.target is not None
    spans = example.target.split()
    restored: list[str] = []
    for word in words:
        if not word.startswith("<extra_id_"):
            restored.append(word)
            continue
        start = spans.index(word) + 1
        stop = next((n for n in range(start, len(spans)) if spans[n][0] == "<"), len(spans))
        restored += spans[start:stop]
    assert " ".join(restored) == SENTENCE
    assert len([word for word in spans if word[0] != "<"]) == 5


def test_bart_writes_the_sentence() -> None:
    example = BART.example("lm", captioned(f"  {SENTENCE} "), 0, rng())
    assert example.target == SENTENCE
    shown = example.prompt.removeprefix("denoise text: ").split()
    assert 1 <= shown.count("<mask>") <= 3
    assert len([word for word in shown if word != "<mask>"]) == 10 - 3


def test_a_region_is_named_and_pointed_at() -> None:
    sample = with_regions("red yolk", "", "grey egg")
    for seed in range(20):
        named = GroundedCaption().example("g", sample, 0, rng(seed))
        pointed = VisualGrounding().example("g", sample, 0, rng(seed))
        number = 0 if named.target == "red yolk" else 2
        assert named.prompt == f"caption region: {POINTERS[number]}"
        assert pointed.prompt == f"visual grounding: {named.target}"
        assert pointed.target == POINTERS[number]


@pytest.mark.parametrize("task", [GroundedCaption(), VisualGrounding()])
def test_a_picture_without_named_regions_is_skipped(task: Task) -> None:
    with pytest.raises(SkipSample, match="none of its regions has a name"):
        ask(task, "g", with_regions("", ""), 0, rng())


def test_all_regions_of_a_name_are_right() -> None:
    example = VisualGrounding().example("g", with_regions("dog", "dog", ""), 0, None)
    assert example.reference["right"] == [POINTERS[0], POINTERS[1]]
    for number, right in enumerate((1.0, 1.0, 0.0)):
        answers = {"g": POINTERS[number]}
        assert VisualGrounding().score(answers, {"g": example.reference}) == {"accuracy": right}


def test_several_regions_have_sentinels() -> None:
    sample = with_regions("red yolk", "grey egg")
    named = GroundedCaption(num_regions=4).example("g", sample, 0, rng(1))
    assert sorted(named.prompt.split()[2:]) == sorted(POINTERS[:2])
    assert named.target is not None
    assert named.target.startswith("<extra_id_0> ")
    assert " <extra_id_1> " in named.target
    pointed = VisualGrounding(num_regions=4).example("g", sample, 0, rng(1))
    assert pointed.prompt == f"visual grounding: {named.target}"
    assert pointed.target == named.prompt.removeprefix("caption region: ")


def test_a_caption_that_both_pictures_have_is_never_false() -> None:
    """VL-T5's loader does not compare the texts."""
    pair = replace(captioned("A dog.", "a cat"), others=(captioned("a  dog.", "two birds"),))
    drawn = {
        (example.target, example.prompt)
        for example in (Matching().example("m", pair, 0, rng(seed)) for seed in range(60))
    }
    assert drawn == {
        ("true", "image text match: A dog."), ("false", "image text match: two birds")
    }  # fmt: skip
    twin = replace(captioned("a dog"), others=(captioned("A dog"),))
    assert {Matching().example("m", twin, 0, rng(seed)).target for seed in range(20)} == {"true"}


def test_answers_of_pre_training_weigh_alike() -> None:
    rows = ({"id": "q", "question": "What?", "label": {"red": 0.3, "blue": 0.9}},)
    sample = replace(sample_of("vqa"), annotations=rows)
    task = VQA(weigh_by_score=False, prompt="visual7w: ")
    drawn = [task.example("qa", sample, 0, rng(seed)) for seed in range(400)]
    assert {example.weight for example in drawn} == {1.0}
    assert sum(example.target == "blue" for example in drawn) / 400 == pytest.approx(0.75, abs=0.07)
    none = replace(sample, annotations=({**rows[0], "label": {"red": 0.0}},))
    assert task.example("qa", none, 0, rng()).weight == 0.0


@pytest.mark.parametrize(
    ("task", "fields", "told"),
    [
        (SpanPrediction, {"share": 0.0}, "share: got 0.0; give more than 0"),
        (GroundedCaption, {"num_regions": 0}, "num_regions: got 0; give a number from 1 to 36"),
        (
            VisualGrounding,
            {"num_regions": 4, "evaluate": ["x"]},
            "num_regions: got 4, but an answer is one visual token",
        ),
    ],
)
def test_impossible_fields_are_named(task: type[Task], fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=f"^{told}"):
        built(task, fields)
