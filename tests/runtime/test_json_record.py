"""A record from JSON has the types of its annotations; an error names the field and its value."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from vlds.runtime.json_files import parse_record, read_record


@dataclass(frozen=True)
class Part:
    size: int
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"size is {self.size}, 0 or more expected")


@dataclass(frozen=True)
class Whole:
    name: str
    parts: Sequence[Part]
    shares: Mapping[str, float]
    first: Part | None = None


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    whole = Whole("a", [Part(1, ("x", "y")), Part(2)], {"x": 1.0, "y": 0.5}, Part(3))
    (tmp_path / "file").write_text(json.dumps(asdict(whole)))
    assert read_record(Whole, tmp_path / "file", "write it again") == whole
    assert math.isnan(parse_record(dict[str, float], '{"a": NaN}')["a"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": 3}, "name is 3, a valid string expected"),
        ({"shares": {"x": True}}, "shares.x is True, a valid number expected"),
        ({"parts": [{"size": 1}, {"size": "2"}]}, "parts[1].size is '2', a valid integer expected"),
        ({"parts": [{"size": 1.0}]}, "parts[0].size is 1.0, a valid integer expected"),
        ({"parts": [{}]}, "parts[0].size is missing"),
        ({"parts": [{"size": -1}]}, "parts[0]: size is -1, 0 or more expected"),
        ({"parts": [{"size": 1, "odd": 2}]}, "unknown field parts[0].odd"),
        ({"odd": 1}, "unknown field odd; known are name, parts, shares, first"),
        ({"name": 3, "first": 4}, "name is 3, a valid string expected; first is 4, an object exp"),
        ({"name": ["x" * 1000]}, f"name is ['{'x' * 40}"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, object], message: str) -> None:
    text = json.dumps({"name": "a", "parts": [], "shares": {}} | fields)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        parse_record(Whole, text)


def test_unknown_fields_may_be_left_out() -> None:
    assert parse_record(Part, '{"size": 1, "odd": 2}', extra="ignore") == Part(1)


def test_many_wrong_fields_are_counted() -> None:
    """To describe each of a million would take minutes and gigabytes."""
    with pytest.raises(ValueError, match=r"shares\.c is 'x', .* expected; and 2 more$"):
        parse_record(
            Whole, json.dumps({"name": "a", "parts": [], "shares": dict.fromkeys("abcde", "x")})
        )
    with pytest.raises(ValueError, match=r"^200,000 of its fields are wrong$"):
        parse_record(list[Part], json.dumps([0] * 200_000))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_other_encodings_are_read(encoding: str) -> None:
    assert parse_record(dict[str, str], '{"a": "caf\u00e9"}'.encode(encoding)) == {"a": "caf\u00e9"}


def test_halves_of_surrogate_pairs_are_question_marks() -> None:
    """Python writes them for file names that are not UTF-8."""
    assert parse_record(dict[str, str], json.dumps({"a": "b\udce9"})) == {"a": "b?"}


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[1]]", "\0", "1" * 10_000])
def test_a_file_that_is_not_json_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(
        ValueError, match=r"file: it is (not JSON \(.*\)|nested more than 100 .*); write it again"
    ):
        read_record(Whole, tmp_path / "file", "write it again")
