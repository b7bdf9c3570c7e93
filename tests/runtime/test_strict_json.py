"""Numbers that are none."""

from __future__ import annotations

import json

import pytest

from vlds.runtime.json_file import NotFinite, strict_json


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e999", "-2.5e400"])
def test_numbers_that_are_none_are_named_with_their_line(word: str) -> None:
    text = f'{{"a": "NaN \\" Infinity",\n "b": [1.5, -2e3, 0],\n "c": [{word}]}}\n'
    with pytest.raises(
        NotFinite, match=rf"^FILE, line 3: {word} is not a number; give a finite one"
    ):
        strict_json(text, "FILE")
    with pytest.raises(NotFinite, match=rf"^FILE: {word} is not a number"):
        strict_json(f"[{word}]\n", "FILE")


def test_all_else_is_read_as_ever() -> None:
    text = '{"a": "NaN", "b": [1.5, -2e3, 12345678901234567890123], "c": null}'
    assert strict_json(text, "FILE") == json.loads(text)
    with pytest.raises(json.JSONDecodeError):
        strict_json("{", "FILE")
    assert strict_json('{"a": 1}', "FILE", lambda pairs: pairs) == [("a", 1)]
