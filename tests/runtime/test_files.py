"""Files from users: what they may be, JSON and YAML."""

from __future__ import annotations

import json
import math
import os
import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from data_prep.cli import main
from data_prep.packing.writer import write_dataset
from tests.toys.streams import records
from vlds.data.shards.shard_stream import read_shard
from vlds.data.shards.store import open_dataset
from vlds.evaluation.inference import predict_one
from vlds.models.backbones import T5
from vlds.models.generation.answer_list import read_answers
from vlds.recipe.config import load_recipe
from vlds.runtime.files import NotAFile, open_file
from vlds.runtime.json_files import (
    DEEPEST,
    NotFinite,
    parse_json,
    parse_member,
    parse_record,
    read_json,
    read_record,
    strict_json,
)
from vlds.runtime.yaml_file import parse_yaml
from vlds.tasks.gqa import load_choices

# Where a file is expected, what is none is named and not opened: a pipe would wait for ever.


def pipe(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(path.parent)  # names of sockets are short
        try:
            server.bind(path.name)
        finally:
            os.chdir(here)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


KINDS = {"a named pipe": pipe, "a socket": unix_socket, "a device": device, "a folder": folder}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_named(kind: str, tmp_path: Path) -> None:
    KINDS[kind](tmp_path / "x")
    with pytest.raises(NotAFile, match=rf"/x is {kind}, not a regular file; name a file"):
        open_file(tmp_path / "x")
    with pytest.raises(FileNotFoundError):
        open_file(tmp_path / "y")


def config_of(path: Path) -> Any:
    with torch.device("meta"):
        return T5(config=str(path), tokenizer="x").read_config()


@pytest.mark.parametrize(
    "read",
    [
        load_recipe,
        load_choices,
        config_of,
        lambda path: read_answers(str(path)),
        lambda path: list(read_shard(str(path))),
        lambda path: predict_one(path.parent, [path], "what?", None),
    ],
)
def test_files_that_users_name(read: Callable[[Path], Any], tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    pipe(path)
    with pytest.raises(ValueError, match="not a regular file"):
        read(path)


def data_with_a_pipe(folder: Path, name: str) -> Path:
    """A data set of which one file is a pipe."""
    place = folder / "toy"
    write_dataset(place, name="toy", kind="vqa", split="train", records=records("toy", 3))
    (place / name).unlink(missing_ok=True)
    pipe(place / name)
    return place


@pytest.mark.parametrize("name", ["dataset.json", "toy-train-00000.tar.idx", "quarantine.jsonl"])
def test_files_of_a_data_set(name: str, tmp_path: Path) -> None:
    place = data_with_a_pipe(tmp_path, name)
    if name == "quarantine.jsonl":  # only a file is one
        assert open_dataset(place).num_samples == 3
        return
    with pytest.raises(ValueError, match=f"{name} is a named pipe, not a regular file"):
        open_dataset(place)


@pytest.mark.parametrize("name", ["toy-train-00000.tar.idx", "dataset.json", ".vlds.lock"])
def test_files_that_an_index_would_replace(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = data_with_a_pipe(tmp_path, name)
    assert main(f"index {place} --name toy --kind vqa --split train".split()) == 2
    assert f"/{name} is a named pipe, not a regular file; name a file\n" in capsys.readouterr().err


# JSON is checked for size and depth before it is parsed; strict JSON holds finite numbers only.


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[" * 200 + "]" * 200,
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


# A record from JSON has the types of its annotations; an error names the field and its value.


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
        ({"parts": [{}]}, "parts[0].size is missing"),
        ({"parts": [{"size": -1}]}, "parts[0]: size is -1, 0 or more expected"),
        ({"parts": [{"size": 1, "odd": 2}]}, "unknown field parts[0].odd"),
        ({"odd": 1}, "unknown field odd; known are name, parts, shares, first"),
        ({"name": ["x" * 1000]}, f"name is ['{'x' * 40}"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, object], message: str) -> None:
    text = json.dumps({"name": "a", "parts": [], "shares": {}} | fields)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        parse_record(Whole, text)


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


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[1]]", "\0", "1" * 10_000])
def test_a_file_that_is_not_json_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(
        ValueError, match=r"file: it is (not JSON \(.*\)|nested more than 100 .*); write it again"
    ):
        read_record(Whole, tmp_path / "file", "write it again")


# YAML on which PyYAML fails with errors other than its own, or needs minutes.


@pytest.mark.parametrize(
    "text",
    ["a: 2020-99-99", '!!timestamp "x"', "!!bool maybe", "!!int x", f"a: {'9' * 5000}"],
)
def test_a_value_that_is_none_of_its_kind_is_shown(text: str) -> None:
    # A merge key is no value by itself.
    merged = f"x: &x {{b: 1}}\ny: {{<<: *x}}\nz:\n  {text}"
    with pytest.raises(ValueError, match=r"^recipe\.yaml, line 4: '.* cannot be read as [a-z]+$"):
        parse_yaml(merged, "recipe.yaml")


def test_a_number_that_fills_the_file_is_refused_at_once() -> None:
    before = time.monotonic()
    with pytest.raises(ValueError, match=r"recipe\.yaml: a value of more than 100,000 characters"):
        parse_yaml("a: " + ":".join(["59"] * 200_000), "recipe.yaml")
    assert time.monotonic() - before < 5


@pytest.mark.parametrize("text", ["[" + "[]," * 900_000, "{" + "a, " * 900_000])
def test_a_file_full_of_values_is_refused_before_they_are_read(text: str) -> None:
    before = time.process_time()
    with pytest.raises(ValueError, match=r"recipe\.yaml: more than 200,000 values; no recipe"):
        parse_yaml(text, "recipe.yaml")
    assert time.process_time() - before < 10


@pytest.mark.parametrize("text", ["a: 1\n---\nb: 2", "a: !!python/object/apply:os.getpid []"])
def test_an_error_is_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"^recipe\.yaml, line \d+: not YAML: [^\n]*$"):
        parse_yaml(text, "recipe.yaml")
