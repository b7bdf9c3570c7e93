"""Reads pickles of others: the one door for them, behind which nothing of a file runs.

A pickle is a list of instructions. Python's reader follows all of them, and so runs any program
that a file names; both it and torch's take as much memory as a file asks for. Here only those are
known that make values, a class or function only if the caller's table has it, and what is made is
never larger than a constant times the file.
"""

from __future__ import annotations

import math
import pickletools
from codecs import escape_decode
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from vlds.runtime.files import NotAFile, read_file

MOST_BITS = 128
"""Of a whole number: products of larger ones could take minutes."""
LARGEST_KEY = 1 << 60
"""Whole numbers below it have unlike hashes. Nothing nested can be a key: to hash a pair of pairs
of pairs ... that are one object takes for ever."""
MOST_LEVELS = 100
"""As in JSON files."""
VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
    "SHORT_BINBYTES", "BINBYTES", "BINBYTES8",
}  # fmt: skip
"""Instructions whose argument is the value."""
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
OPCODES = (
    {
        opcode.code.encode("latin-1"): (opcode.name, opcode.arg.reader if opcode.arg else None)
        for opcode in pickletools.opcodes
        if opcode.name != "STRING"  # its reader does not know bytes that are not ASCII
    }
    | {b"S": ("STRING", lambda stream: escape_decode(stream.readline().strip()[1:-1])[0])}
)


class Named(NamedTuple):
    """A class or function of the caller's table."""

    name: str
    make: Callable[..., Any] | None
    """None: it is only named, never called."""


class NotKnown(ValueError):
    """A pickle names a class or function that is not in the table."""

    def __init__(self, name: str) -> None:
        super().__init__(f"it names {name}, which could run any program")
        self.name = name


class Unread:
    """In place of an instance whose content nobody reads."""


def read_pickle(
    stream: BytesIO,
    known: Mapping[str, Callable[..., Any] | None],
    persistent: Callable[[list[Any]], Any] | None = None,
) -> Any:
    """The value of a pickle; tuples become lists. `known`: name -> what makes the instance of a
    class, or is called in place of a function. `persistent`: what stands for something outside of
    the pickle, from its description.

    Errors: NotKnown; whatever damaged bytes raise.
    """
    stack: list[Any] = []
    outer: list[list[Any]] = []  # the stacks below each mark
    memo: dict[int, Any] = {}
    while True:
        name, argument_of = OPCODES[stream.read(1)]
        argument: Any = argument_of(stream) if argument_of is not None else None
        if name in VALUES:
            if type(argument) is int and argument.bit_length() > MOST_BITS:
                raise ValueError(f"a whole number of {argument.bit_length():,} bits")
            stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[argument])
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in ("STRING", "BINSTRING", "SHORT_BINSTRING"):
            # Texts of Python 2, which pickletools decodes as Latin-1.
            data = argument if isinstance(argument, bytes) else argument.encode("latin-1")
            stack.append(data.decode("utf-8"))
        elif name == "MARK":
            outer.append(stack)
            stack = []
        elif name in ("EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append([])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            size = int(name[-1])
            if len(stack) < size:
                raise ValueError(f"{name} of {len(stack)} values")
            stack[-size:] = [stack[-size:]]
        elif name in ("LIST", "TUPLE", "DICT", "APPENDS", "SETITEMS"):
            items, stack = stack, outer.pop()
            if name in ("LIST", "TUPLE"):
                stack.append(items)
            elif name == "APPENDS":
                _append(stack[-1], items)
            else:
                if name == "DICT":
                    stack.append({})
                _set(stack[-1], items)
        elif name == "APPEND":
            item = stack.pop()
            _append(stack[-1], [item])
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _set(stack[-1], [key, value])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            if name == "STACK_GLOBAL":
                inner, module = stack.pop(), stack.pop()
                argument = f"{module} {inner}" if type(module) is type(inner) is str else "?"
            if (full := argument.replace(" ", ".", 1)) not in known:
                raise NotKnown(full[:100])
            stack.append(Named(full, known[full]))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            if type(function) is not Named or function.make is None or type(arguments) is not list:
                raise ValueError(f"{name} of no function")
            stack.append(function.make(*arguments))
        elif name == "BUILD":
            stack.pop()  # attributes, such as those of an OrderedDict, which nobody reads
        elif name == "BINPERSID" and persistent is not None:
            stack.append(persistent(stack.pop()))
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"the instruction {name}, which files of plain values do not have")


def _append(target: Any, items: list[Any]) -> None:
    if type(target) is list:
        target.extend(items)
    elif type(target) is not Unread:
        raise ValueError("values for what is no list")


def _set(target: Any, items: list[Any]) -> None:
    if type(target) not in (dict, Unread) or len(items) % 2:
        raise ValueError("values for what is no dictionary")
    for key, value in zip(items[::2], items[1::2], strict=True):
        small = type(key) is int and abs(key) < LARGEST_KEY
        if not (small or type(key) in (str, bool, Named, type(None))):
            raise ValueError(f"a {type(key).__name__} as a key")
        if type(target) is dict:
            target[key] = value


def read_plain(path: Path, cure: str) -> Any:
    """The value of a pickle that Python 2 or 3 wrote, as JSON has it: numbers, texts, lists (and
    tuples, as lists) and objects.

    Errors: OSError; ValueError, with the cure, if it is damaged or holds anything else.
    """
    try:
        content = read_file(path)
        value = read_pickle(BytesIO(content), {})
        _check_plain(value, len(content))
    except (OSError, NotAFile):
        raise
    except Exception as error:  # damaged bytes raise anything
        raise ValueError(
            f"{path} is not a pickle of plain values: {in_short(error)}; {cure}"
        ) from None
    return value


def _check_plain(value: Any, most: int) -> None:
    """Errors: ValueError if values are not as JSON has them, are nested too deep, or would be more
    than `most` if what stands in several places were written out there."""
    pending = [([value], 0)]
    while pending:
        items, level = pending.pop()
        most -= len(items)
        if most < 0 or level > MOST_LEVELS:
            raise ValueError("its parts hold each other too often")
        for item in items:
            if type(item) is list:
                pending.append((item, level + 1))
            elif type(item) is dict:
                if not all(type(key) is str for key in item):
                    raise ValueError("an object with keys that are no texts")
                pending.append((list(item.values()), level + 1))
            elif type(item) is bytes or (type(item) is float and not math.isfinite(item)):
                raise ValueError(f"a value {str(item)[:40]}")


def in_short(error: Exception) -> str:
    """What an error of any type says, for a line of ours."""
    text = " ".join(str(error).split())[:120]
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"
