"""Captions of the right picture and of another one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vlds.models.heads import LinearHead
from vlds.schema import Sample
from vlds.tasks import Matching

TASK = Matching()


def sample(number: int) -> Sample:
    annotations = tuple(
        {"id": f"{number}-{n}", "caption": f"caption {n} of {number}"} for n in range(2)
    )
    return Sample(f"{number:06d}", "toy", str(number), "caption", (b"",), (), annotations)


PAIR = replace(sample(1), others=(sample(2),))


def test_half_of_the_captions_are_of_the_other_picture() -> None:
    rng = np.random.default_rng(0)
    examples = [TASK.example("m", PAIR, n % 2, rng) for n in range(400)]
    right = [example for example in examples if example.target == "true"]
    assert 160 < len(right) < 240
    assert all(" of 1" in example.prompt for example in right)
    wrong = [example for example in examples if example.target == "false"]
    assert {example.prompt for example in wrong} == {
        f"image text match: caption {n} of 2" for n in range(2)
    }


def test_a_head_has_the_two_answers() -> None:
    head = replace(TASK, head=LinearHead(classes=Matching.labels))
    example = head.example("m", sample(1), 0, np.random.default_rng(1))
    assert (example.target, example.class_scores) == ("", {1: 1.0})
