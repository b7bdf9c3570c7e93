"""JSON files: parsed after a check of size and depth, read into typed records, and what vlds itself
writes as JSON (a folder's manifest, a run's metrics).
"""

from __future__ import annotations

import ast
import errno
import hashlib
import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from reprlib import Repr
from typing import Any, Literal, TypeVar

import orjson

from vlds.runtime.checks import are_numbers, is_number
from vlds.runtime.disk import system_error
from vlds.runtime.files import LARGEST_FILE, open_file, read_file, read_text

LARGEST_MEMBER = 64 << 20
"""Bytes of a sample's json."""
DEEPEST = 100
"""Levels of nesting. Python's parser raises RecursionError at about a thousand."""
ONE_KIND = bytes.maketrans(b"{}", b"[]")
NO_STRUCTURE = bytes(set(range(256)) - set(b'[]{}"'))
TOKENS = re.compile(r'"(?:\\.|[^"\\])*"|-?Infinity|NaN|-?\d[\d.eE+-]*')
"""Texts, which may hold anything, and numbers, which may not be finite."""
Pairs = list[tuple[str, Any]]


class NotFinite(ValueError):
    """NaN, an infinity, or a number that does not fit a double."""


def read_json(file: Path, largest: int = LARGEST_FILE) -> Any:
    """Read a JSON file.

    Errors: as `parse_json`; CannotOpen; FileNotFoundError.
    """
    return parse_json(read_file(file, largest))


def read_named_json(path: str, field: str, cure: str) -> Any:
    """Read the JSON file that a recipe's field names.

    Errors: ValueError that begins with the field and the path; of a file that cannot be opened, it
    ends with the cure.
    """
    try:
        return read_json(Path(path))
    except OSError as error:
        raise ValueError(f"{field}: {path}: {error.strerror}; {cure}") from None
    except ValueError as error:
        raise ValueError(f"{field}: {path} is not JSON ({in_words(error)})") from None


def in_words(error: Exception) -> str:
    """What Python or its parsers say of wrong data, in a reader's words."""
    if isinstance(error, KeyError) and error.args:
        return f"it has no {error.args[0]!r}"
    # Python's own cure for the length of numbers is a call.
    if str(error).startswith("Exceeds the limit"):
        return "a whole number of more than 4,300 digits"
    return str(error) or type(error).__name__


def parse_json(data: bytes | str) -> Any:
    """Parse JSON; the caller adds to errors where it comes from.

    Errors: JSONDecodeError; ValueError if it is nested too deep, or holds a whole number that does
    not fit a double.
    """
    check_depth(data)
    return json.loads(data, parse_int=whole)


def whole(word: str) -> int:
    """A whole number. Errors: NotFinite if it does not fit a double: Python reads such ones, and
    raises OverflowError wherever they meet one."""
    number = int(word)
    if len(word) > 308 and not math.isfinite(float(word)):
        raise NotFinite(f"{word:.20}... has {len(word)} digits; give a number below 1.8e308")
    return number


def parse_literal(text: str) -> Any:
    """Parse a literal of Python, of a file that anybody may have written. Errors: ValueError."""
    try:
        return ast.literal_eval(text)
    # What its compiler raises, and what it raises for keys that are lists.
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(in_words(error)) from None


def strict_json(
    text: str, source: str, object_pairs_hook: Callable[[Pairs], Any] | None = None
) -> Any:
    """Parse JSON as its standard defines it, without NaN, Infinity or numbers that do not fit a
    double: Python accepts these, and would store them as the texts "nan" and "inf".

    Errors: JSONDecodeError; ValueError if it is nested too deep; NotFinite that names `source`, the
    line if there are several, and the number.
    """
    check_depth(text)

    def finite(word: str) -> float:
        if not math.isfinite(number := float(word)):
            raise NotFinite(f"{word} is not a number; give a finite one, text or null")
        return number

    try:
        # The words for `parse_constant` are NaN, Infinity and -Infinity.
        return json.loads(
            text,
            parse_constant=finite,
            parse_float=finite,
            parse_int=whole,
            object_pairs_hook=object_pairs_hook,
        )
    except NotFinite as error:
        line = ""
        if "\n" in text.strip():
            # Python's parser does not say where it is, so the first such number is looked for.
            for token in TOKENS.finditer(text):
                if token[0][0] != '"' and not math.isfinite(float(token[0])):
                    line = f", line {text.count(chr(10), 0, token.start()) + 1}"
                    break
        raise NotFinite(f"{source}{line}: {error}") from None


def parse_member(data: bytes | memoryview) -> Any:
    """Parse the json of a sample, faster than `parse_json`.

    Errors: ValueError, also if it is larger than any sample's.
    """
    if len(data) > LARGEST_MEMBER:
        raise ValueError(f"{len(data):,} bytes of json; at most {LARGEST_MEMBER:,} are read")
    # orjson reads 1024 levels, but Python code that walks a sample recurses.
    check_depth(data)
    return orjson.loads(data)


def check_depth(data: bytes | memoryview | str) -> None:
    """Errors: ValueError if values are nested deeper than in any file of vlds."""
    # Nearly all files pass the count of opening brackets; only the rest is measured.
    plain = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else bytes(data)
    if plain.count(b"[") + plain.count(b"{") > DEEPEST and depth(plain) > DEEPEST:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep")


def depth(data: bytes) -> int:
    """Levels of nesting, counted up to DEEPEST + 1; brackets that are never closed all count.

    Keeps the brackets alone, then removes the innermost pairs level by level: that takes a fraction
    of the time of parsing.
    """
    # Escaped backslashes first: in "\\" the last quote is not escaped.
    if b"\\" in data:
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    parts = data.translate(ONE_KIND, NO_STRUCTURE).split(b'"')
    structure = b"".join(parts[::2])  # every other part is inside a string
    # [[][[]]] -> [[]] -> [] -> nothing: three levels.
    levels = 0
    while structure and levels <= DEEPEST:
        inner = structure.replace(b"[]", b"")
        if len(inner) == len(structure):
            return levels + len(structure)
        structure = inner
        levels += 1
    return levels


# Typed records: dataclasses, and lists and mappings of them. A record's annotations are the only
# description of its form. A field without a default must be there, no value is converted to another
# type, and unknown fields are errors unless `extra` says "ignore". pydantic reads them.

MOST_FAULTS = 3
"""Wrong fields that an error lists."""
SHORT = Repr()
SHORT.maxstring = SHORT.maxother = 100
T = TypeVar("T")


def read_record(kind: type[T], file: Path, cure: str) -> T:
    """Read a JSON file that holds a record, such as `dict[str, Scored]`.

    Errors: ValueError "FILE: FIELD is VALUE, what is right; CURE"; CannotOpen; FileNotFoundError.
    """
    data = read_file(file)
    try:
        return parse_record(kind, data)
    except ValueError as error:
        raise ValueError(f"{file}: {error}; {cure}") from None


def parse_record(
    kind: type[T], data: bytes | str, extra: Literal["forbid", "ignore"] = "forbid"
) -> T:
    """Parse JSON that holds a record; the caller adds to errors where it comes from.

    Errors: ValueError that names the wrong fields, as in "shards[2].bytes is 'x', a valid
    integer expected".
    """
    from pydantic import ValidationError

    check_depth(data)
    adapter = _adapter(kind)  # type: ignore[arg-type]  # to mypy, types are not hashable
    try:
        record: T = adapter.validate_json(data, strict=True, extra=extra)
    except ValidationError as error:
        num = error.error_count()
        # Such a file is something else, and describing each fault takes minutes.
        if num > 1000:
            raise ValueError(f"{num:,} of its fields are wrong") from None
        faults = error.errors(include_url=False)
        if num == 1 and faults[0]["type"] == "json_invalid":
            # Python reads more than pydantic: UTF-16, a byte order mark, halves of surrogate pairs,
            # which become "?". What was rewritten once does not change again.
            try:
                rewritten = json.dumps(json.loads(data), ensure_ascii=False)
            except ValueError as not_json:
                raise ValueError(f"it is not JSON ({in_words(not_json)})") from None
            if (in_utf8 := rewritten.encode("utf-8", "replace")) != data:
                return parse_record(kind, in_utf8, extra)
        first = "; ".join(_fault(kind, fault) for fault in faults[:MOST_FAULTS])
        more = f"; and {num - MOST_FAULTS} more" if num > MOST_FAULTS else ""
        raise ValueError(f"{first}{more}") from None
    return record


@cache
def _adapter(kind: type[T]) -> Any:
    # Cached: building one takes milliseconds. Imported here, because pydantic takes 0.2 s: that is
    # too long for `--help`.
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _fault(kind: type[T], fault: Mapping[str, Any]) -> str:
    """One fault in words: the field's path, its value, and what is expected."""
    path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in fault["loc"])
    name, message = path.removeprefix("."), str(fault["msg"])
    match fault["type"]:
        case "json_invalid":
            return f"it is not JSON ({message.removeprefix('Invalid JSON: ')})"
        case "missing":
            return f"{name} is missing"
        case "unexpected_keyword_argument":
            known = fields(kind) if is_dataclass(kind) and len(fault["loc"]) == 1 else ()
            names = ", ".join(field.name for field in known)
            return f"unknown field {name}" + (f"; known are {names}" if names else "")
        case "value_error":
            return f"{name}: {fault['ctx']['error']}" if name else str(fault["ctx"]["error"])
    expected = message.removeprefix("Input should be ")
    return f"{name or 'it'} is {SHORT.repr(fault['input'])}, {expected} expected"


# A folder's manifest: size and hash of every file, to check that the folder is whole.

MANIFEST = "manifest.json"
DESCRIPTION = "artifact.json"
"""A folder with this file was written by vlds, so it has a manifest."""


def write_manifest(folder: Path) -> None:
    """Write the manifest of a folder, after all its other files."""
    # The manifest comes last: a folder with one was written to its end.
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    entries = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in files
    }
    (folder / MANIFEST).write_text(json.dumps(entries, indent=1), encoding="utf-8")


def recorded_hash(folder: Path, name: str) -> str:
    """SHA-256 of a file in a folder that is whole, as its manifest has it."""
    digest: str = read_json(folder / MANIFEST)[name]["sha256"]
    return digest


def damage(folder: Path, needs: Collection[str] = (), within: str | None = None) -> str | None:
    """What is wrong with a folder that has a manifest; None if it is whole.

    `needs`: files that the manifest must list. `within`: check only this file or folder in it. The
    manifest may come from anybody: nothing outside the folder is opened, whatever it names.
    """
    try:
        entries = read_json(folder / MANIFEST)
    except FileNotFoundError:
        return f"has no {MANIFEST}: it was not written to the end"
    except (OSError, ValueError):
        return f"{MANIFEST} cannot be read"
    if not isinstance(entries, dict):
        return f"{MANIFEST} is not a list of files"
    for name in needs:
        if name not in entries:
            return f"{MANIFEST} does not list {name}"
    if within is not None:
        entries = {
            name: entry
            for name, entry in entries.items()
            if name == within or name.startswith(f"{within}/")
        }
        if not entries:
            return f"{MANIFEST} does not list {within}"
    for name, entry in entries.items():
        if not isinstance(entry, dict) or not {"bytes", "sha256"} <= entry.keys():
            return f"{MANIFEST} has no size and sha256 for {name!r}"
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            return f"{MANIFEST} names {name!r}, which is outside the folder"
        path = folder / name
        try:
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != entry["bytes"] or sha256(path) != entry["sha256"]:
                return f"{name} is not what was written (size or sha256 differ)"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lacks_memory(error: BaseException) -> bool:
    """True if an error of any library means that memory ran out."""
    refused = system_error(error)
    # Parts of torch's RuntimeErrors; torch.OutOfMemoryError is one too.
    words = ("can't allocate memory", "not enough memory", "out of memory")
    torch_says = isinstance(error, RuntimeError) and any(w in str(error) for w in words)
    return (
        isinstance(error, MemoryError)
        or (refused is not None and refused.errno == errno.ENOMEM)
        or torch_says
    )


# metrics.jsonl, for a resumed run and for a report.

NUMBERS = (
    "step", "passes", "samples_per_second", "answers_per_second", "seconds", "seconds_since_log",
    "loss", "most_memory",
)  # fmt: skip
"""Fields that hold a number, besides the parts of the loss."""
SHOWN = 40
"""Characters of a line that a warning shows."""


@dataclass(frozen=True)
class MetricLines:
    """The content of a file."""

    lines: list[tuple[str, dict[str, Any]]]
    """Each line that counts, as text and parsed."""
    complaint: str
    """Which lines were skipped; "" if none."""


def read_metric_lines(path: Path) -> MetricLines:
    """Read metrics.jsonl; no lines if there is no such file.

    A line counts if it is an object with a whole number as `step` and the right types in the fields
    that a report shows. Other lines are skipped with a complaint: a record about a run never stops
    one.
    """
    text = read_text(path, errors="replace") if path.is_file() else ""
    lines, skipped = [], []
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], 1):
        try:
            metrics = parse_json(line)
        except ValueError:
            metrics = None
        # A float has passed `_is_right` too, but steps are whole numbers.
        if (
            isinstance(metrics, dict)
            and not isinstance(metrics.get("step"), float | None)
            and all(_is_right(*field) for field in metrics.items())
        ):
            lines.append((line, metrics))
        else:
            skipped.append((number, line))
    if not skipped:
        return MetricLines(lines, "")
    number, line = skipped[0]
    shown = line if len(line) <= SHOWN else f"{line[:SHOWN]}..."
    if len(skipped) == 1:
        what = f"line {number} is skipped, it is not a line of metrics: {shown!r}"
    else:
        what = (
            f"{len(skipped)} lines are skipped, they are not lines of metrics; the first is line "
            f"{number}: {shown!r}"
        )
    return MetricLines(lines, f"{path}: {what}")


def _is_right(name: str, value: Any) -> bool:
    """True if a field holds what a run writes there."""
    if name in NUMBERS or name.startswith(("loss/", "added/")):
        return is_number(value)
    if name == "scores":
        return isinstance(value, dict) and all(map(are_numbers, value.values()))
    if name == "trainable" and value != {}:
        counts = ("total", "trainable", "percent")
        return isinstance(value, dict) and all(is_number(value.get(key)) for key in counts)
    return name != "bytes_per_rank" or are_numbers(value)
