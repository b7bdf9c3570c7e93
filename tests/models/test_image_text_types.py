"""Each tested type sees its pictures. That it computes what Hugging Face does is said by
tests/prove/test_source.py."""

from __future__ import annotations

import pytest
import torch

from tests.toys.image_text import PARAMETERS, TYPES
from tests.toys.image_text.rows import Tiny, images, tiny
from vlds.models.kinds.image_text import TESTED


def test_tested_types_are_those_of_the_tests() -> None:
    assert sorted(TESTED) == sorted(TYPES)


@pytest.fixture(params=PARAMETERS)
def model(request: pytest.FixtureRequest) -> Tiny:
    return tiny(request.param)


@torch.no_grad()
def test_pictures_are_seen(model: Tiny) -> None:
    """Other pictures in their place change each row that has some, and no other."""
    built, rows = model.build().eval(), model.rows()
    before = built.token_nll(model.batch(rows)).sum(1)
    inverse = [255 - picture for picture in images()]
    other = model.collator(rows, inverse, evaluation=False)
    change = (built.token_nll(other).sum(1) - before).abs()
    assert [float(c) > 1e-6 for c in change] == [len(row.images) > 0 for row in rows]
