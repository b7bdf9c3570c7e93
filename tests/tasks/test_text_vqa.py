"""TextVQA's words in the input, and A-OKVQA's questions without their choices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.toys.task_samples import sample_of
from vlds.recipe.build import build as built
from vlds.tasks import DirectAnswer, TextVQA


def test_words_of_the_picture_follow_the_question() -> None:
    sample = replace(sample_of("vqa"), extra={"ocr_tokens": ["NOKIA", "12:30", "x"]})
    for max_words, end in ((50, " words: NOKIA 12:30 x"), (1, " words: NOKIA"), (0, "")):
        example = TextVQA(max_words=max_words).example("t", sample, 0, None)
        assert example.prompt == "textvqa: What color?" + end
    assert TextVQA().example("t", sample_of("vqa"), 0, None).prompt == "textvqa: What color?"
    with pytest.raises(ValueError, match="max_words: got -1; give 0 or more"):
        built(TextVQA, {"max_words": -1})


def test_difficult_questions_train_and_do_not_count() -> None:
    sample = sample_of("multiple_choice")
    first, second = sample.annotations
    sample = replace(sample, annotations=({**first, "difficult": True}, second))
    example = DirectAnswer().example("d", sample, 0, None)
    assert (example.target, example.reference) == ("train", None)
    trained = DirectAnswer().example("d", sample, 0, np.random.default_rng(0))
    assert (trained.prompt, trained.target) == ("vqa: What is he awaiting?", "train")
    assert DirectAnswer().example("d", sample, 1, None).reference["answers"] == ["man"] * 10
