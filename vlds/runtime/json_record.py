"""JSON read into typed records: dataclasses, and lists and mappings of them.

A record's annotations are the only description of its form. A field without a default must be
there, no value is converted to another type, and unknown fields are errors unless `extra` says
"ignore".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from reprlib import Repr
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from vlds.runtime.json_file import check_depth
from vlds.runtime.regular_file import read_file

if TYPE_CHECKING:
    from pydantic import ValidationError

MOST_FAULTS = 3
"""Wrong fields that an error lists."""
HOPELESS = 1000
"""With more wrong fields a file is something else, and to describe each of them takes minutes."""
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
        is_unread = error.error_count() == 1 and error.errors()[0]["type"] == "json_invalid"
        # Python reads more than pydantic. What was rewritten once does not change again.
        if is_unread and (rewritten := _rewritten(data)) != data:
            return parse_record(kind, rewritten, extra)
        raise ValueError(_in_words(kind, error)) from None
    return record


def _rewritten(data: bytes | str) -> bytes:
    """JSON that pydantic does not read and Python does, in UTF-8: UTF-16, a byte order mark, halves
    of surrogate pairs, which become "?".

    Errors: ValueError if it is not JSON.
    """
    try:
        return json.dumps(json.loads(data), ensure_ascii=False).encode("utf-8", "replace")
    except ValueError as error:
        raise ValueError(f"it is not JSON ({error})") from None


@cache
def _adapter(kind: type[T]) -> Any:
    # Imported here, because pydantic takes 0.2 s: that is too long for `--help`.
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _in_words(kind: type[T], faults: ValidationError) -> str:
    """The first wrong fields, and how many more there are."""
    num = faults.error_count()
    if num > HOPELESS:
        return f"{num:,} of its fields are wrong"
    first = [_fault(kind, fault) for fault in faults.errors(include_url=False)[:MOST_FAULTS]]
    more = f"; and {num - MOST_FAULTS} more" if num > MOST_FAULTS else ""
    return "; ".join(first) + more


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
