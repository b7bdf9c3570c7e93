"""ValueErrors of libraries are no mistakes of users."""

from __future__ import annotations

import random

import pytest

from vlds.data.order.mixed_order import check_lanes
from vlds.training.faults import library_faults


def test_of_a_library() -> None:
    with pytest.raises(RuntimeError, match=r"^ValueError: empty range"), library_faults():
        random.randrange(3, 3)


def test_of_our_own() -> None:
    with pytest.raises(ValueError, match="lanes"), library_faults():
        check_lanes(7, 64, "batch_size")
