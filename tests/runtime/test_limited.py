"""What a stranger's file asks for runs in a copy of this process, within limits."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

import pytest

from vlds.runtime.limited import OverLimit, limited


def fails() -> str:
    raise KeyError("a")


def ends() -> str:
    os._exit(3)


def test_a_text_comes_back_as_it_is() -> None:
    text = "é\n\ud800" * 100_000
    assert limited(lambda: text) == text
    assert limited(str) == ""


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (fails, ValueError, "^'a'$"),
        (lambda: "a" * (5 << 20), ValueError, "writes more than 4 MiB"),
        (lambda: "a" * 10**11, OverLimit, "more than 512 MiB"),
        (lambda: str(re.match("(a+)+$", "a" * 60 + "b")), OverLimit, "more than 2 seconds"),
        (ends, OverLimit, ""),
    ],
    ids=["fails", "writes too much", "memory", "time", "ends"],
)
def test_limits(make: Callable[[], str], error: type[ValueError], message: str) -> None:
    with pytest.raises(error, match=message):
        limited(make)
