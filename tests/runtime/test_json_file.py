"""JSON is checked for size and depth before it is parsed; strict JSON holds finite numbers only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlds.runtime.json_files import (
    DEEPEST,
    NotFinite,
    depth,
    parse_json,
    parse_member,
    read_json,
    strict_json,
)

KEYS = st.text('[]{}"\\', max_size=3)
JSON = st.recursive(
    st.none() | st.integers() | st.text('[]{}"\\,: ab', max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner),
    max_leaves=20,
)


def levels(value: Any) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(levels, value), default=0) if isinstance(value, list) else 0


@pytest.mark.slow
@given(value=JSON)
@settings(max_examples=200, deadline=None, database=None, derandomize=True)
def test_depth_is_that_of_the_value(value: Any) -> None:
    assert depth(json.dumps(value).encode()) == levels(value)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[" * 200 + "]" * 200,
        '{"a":' * 200 + "1" + "}" * 200,
        '[{"a":' * 200 + "1" + "}, 1]" * 200,
    ],
)
def test_deep_values_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text(text)
    for read in (
        lambda: parse_json(text),
        lambda: parse_member(text.encode()),
        lambda: read_json(tmp_path / "deep.json"),
    ):
        with pytest.raises(ValueError, match=f"nested more than {DEEPEST} levels deep"):
            read()


def test_wide_values_are_not() -> None:
    wide = [{"text": "[[[[{{{{" * 100, "more": [[n]]} for n in range(1000)]
    assert parse_json(json.dumps(wide)) == parse_member(json.dumps(wide).encode()) == wide


def test_size_is_bounded(tmp_path: Path) -> None:
    with open(tmp_path / "large", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match=r"large: 1,099,511,627,776 bytes; at most 1,073,741,824"):
        read_json(tmp_path / "large")


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e999", "-2.5e400", "1" * 400])
def test_numbers_that_are_not_finite_are_named_with_their_line(word: str) -> None:
    text = f'{{"a": "NaN \\" Infinity",\n "b": [1.5, -2e3, 0],\n "c": [{word}]}}\n'
    told = "1{20}... has 400 digits; give" if len(word) > 20 else f"{word} is not a number; give a "
    with pytest.raises(NotFinite, match=rf"^FILE, line 3: {told}"):
        strict_json(text, "FILE")
    with pytest.raises(NotFinite, match=rf"^FILE: {told}"):
        strict_json(f"[{word}]\n", "FILE")


def test_strict_json_reads_everything_else_as_python_does() -> None:
    text = '{"a": "NaN", "b": [1.5, -2e3, 12345678901234567890123], "c": null}'
    assert strict_json(text, "FILE") == json.loads(text)
    with pytest.raises(json.JSONDecodeError):
        strict_json("{", "FILE")
    with pytest.raises(NotFinite):
        parse_json("1" * 400)
    assert strict_json('{"a": 1}', "FILE", lambda pairs: pairs) == [("a", 1)]
