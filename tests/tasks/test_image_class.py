"""Classes of pictures: accuracy over pictures, and its mean over classes."""

from __future__ import annotations

import numpy as np
import pytest

from tests.toys.task_samples import sample_of
from vlds.tasks import ImageClass

REFERENCES = {"1": "cat", "2": "cat", "3": "cat", "4": "big dog", "5": "yes/no", "6": None}
PREDICTIONS = {"1": "cat", "2": "big dog", "3": "Cat ", "4": "big  dog", "5": "cat", "6": "cat"}


def test_the_prompt_is_the_input_and_the_name_the_target() -> None:
    sample = sample_of("image_class")
    examples = [
        ImageClass(prompt="what? ").example("n", sample, index, rng)
        for index, rng in ((0, np.random.default_rng(0)), (1, None))
    ]
    assert [(e.id, e.prompt, e.target, e.reference) for e in examples] == [
        ("cat/1.jpg", "what? ", "tabby cat", None),
        ("dog/1.jpg", "what? ", "dog", "dog"),
    ]


def test_scores() -> None:
    """Three of five pictures; two thirds of the cats, all dogs, none of the others."""
    scores = ImageClass().score(PREDICTIONS, REFERENCES)
    assert list(scores)[:2] == ["accuracy", "mean_class_accuracy"]
    assert scores == pytest.approx(
        {
            "accuracy": 3 / 5,
            "mean_class_accuracy": (2 / 3 + 1 + 0) / 3,
            "accuracy/class/big dog": 1.0,
            "accuracy/class/cat": 2 / 3,
            "accuracy/class/yes/no": 0.0,
        }
    )
