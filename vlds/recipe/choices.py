"""The classes and keys that a recipe may name, and which ones a wrong name means.

For a wrong key, vlds guesses which one is meant: the right name in another place, or the name that
other trainers have for it.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cache
from inspect import isabstract
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from vlds.runtime.checks import MEANT, Choice, closest, note_on

CLASS, ARGUMENTS = "class_path", "init_args"
"""Keys of a chosen class in a recipe's file."""


class Sketched:
    """Base of the classes that sketch.py makes of the sources: they have the fields of the real
    ones, and cannot be imported by a dotted name."""


class SketchedChoice(Sketched, Choice):
    """Base of those that a recipe chooses by name."""


class NotSketched(Exception):
    """A recipe names a class of the user, whose module only a run imports."""


def subclasses(base: type) -> Iterator[type]:
    """All subclasses that are imported, at any depth."""
    children: list[type] = base.__subclasses__()
    for child in children:
        yield child
        yield from subclasses(child)


def concrete_classes(base: type) -> dict[str, type]:
    """The classes that can be chosen for `base`, by name."""
    is_sketch = issubclass(base, Sketched)
    classes = (cls for cls in subclasses(base) if issubclass(cls, Sketched) == is_sketch)
    return {cls.__name__: cls for cls in classes if not isabstract(cls)}


def class_named(path: str, base: type) -> type | None:
    """The class of a `class_path`; None if it is not a class of `base`. Imports the module of a
    dotted path.

    Errors: ImportError.
    """
    module, _, name = path.rpartition(".")
    if not module:
        return concrete_classes(base).get(name)
    if issubclass(base, Sketched):
        raise NotSketched(path)
    if not all(part.isidentifier() for part in module.split(".")):
        return None  # import_module raises other errors for relative and empty names
    cls = getattr(importlib.import_module(module), name, None)
    return cls if isinstance(cls, type) and issubclass(cls, base) else None


def class_if_there(path: str, base: type) -> type | None:
    """The class of a `class_path`; None if there is none, which the builder reports."""
    with suppress(ImportError):
        return class_named(path, base)
    return None


@cache
def field_types(cls: type) -> Mapping[str, Any]:
    """Name -> type of the fields that a recipe can set, with their limits."""
    # Postponed annotations are texts; get_type_hints evaluates them, and would drop the limits.
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in fields(cls) if field.init}


def dataclass_of(hint: Any) -> type | None:
    """The dataclass in a field's type: T of `T`, `T | None` or `dict[str, T]`."""
    if is_dataclass(hint) and isinstance(hint, type):
        return hint
    return next((cls for part in get_args(hint) if (cls := dataclass_of(part))), None)


def takes_null(hint: Any) -> bool:
    """True for `T | None`."""
    return type(None) in get_args(hint)


def is_mapping_of_choices(hint: Any) -> bool:
    """True for `dict[str, T]`."""
    return get_origin(hint) is dict


def is_choice(cls: type) -> bool:
    """True if a recipe chooses a class in place of `cls`."""
    return issubclass(cls, Choice)


def branches_of(hint: Any) -> list[Any]:
    """The types of a union, or the one type, without limits."""
    is_union = get_origin(hint) in (Union, UnionType)
    parts = get_args(hint) if is_union else (hint,)
    return [part.__origin__ if hasattr(part, "__metadata__") else part for part in parts]


MOST_MEANT = 3


def hint_at(name: str, here: str, known: list[str], tree: Any, options: type) -> str:
    """'did you mean ...? ' about an unknown key `name` of the place `here`, which has the `known`
    ones, in the tree of the dataclass `options`; '' if nothing is like it."""
    keys = [
        f"{place}.{field}".strip(".")
        for place, cls in sections(tree, options)
        for field in field_types(cls)
    ]
    # Other trainers' options have dashes: --batch-size.
    plain = name.lower().replace("-", "_")
    if note := note_on(name):
        return note
    wanted = MEANT.get(plain, (plain,))
    found = [word for word in wanted if word.startswith("--")]
    for word in wanted:
        section, _, name_there = word.rpartition(".")
        found += [k for k in keys if last(k) == name_there and k.startswith(section) and k != here]
    # A key of the same place is likelier than one elsewhere.
    beside = [key for key in found if key.rpartition(".")[0] == here]
    if not beside and (close := closest(name, known)) is not None and plain not in MEANT:
        beside = [f"{here}.{close}".strip(".")] if not found else []
    if not found and not beside:
        ends = list(dict.fromkeys(map(last, keys)))
        # A name in another place must be more similar than one in the same place.
        near = difflib.get_close_matches(plain, ends, 1, 0.8)
        found = [key for key in keys if last(key) in near]
    if shown := (beside or sorted(found, key=lambda key: key.count(".")))[:MOST_MEANT]:
        return f"did you mean {' or '.join(map(repr, shown))}? "
    # No class of the recipe has it; perhaps one that could be chosen.
    section, _, field = wanted[0].rpartition(".")
    root = SketchedChoice if issubclass(options, Sketched) else Choice
    base = dataclass_of(field_types(options).get(section)) or root
    owners = [name for name, cls in concrete_classes(base).items() if field in field_types(cls)]
    return f"{field} is a key of {', '.join(sorted(owners)[:MOST_MEANT])}; " if owners else ""


def last(key: str) -> str:
    """The last part of a dotted key."""
    return key.rpartition(".")[2]


def sections(
    tree: Any, cls: type, key: str = "", *, absent: bool = False
) -> Iterator[tuple[str, type]]:
    """Dotted key and dataclass of each part of a recipe's tree, with the classes that it chooses;
    `absent`: of optional parts that are not there, too. Keys are written as on the command line,
    without init_args."""
    yield key, cls
    given = tree if isinstance(tree, Mapping) else {}
    for name, hint in field_types(cls).items():
        whole, value, inner = f"{key}.{name}".strip("."), given.get(name), dataclass_of(hint)
        if inner is None:
            continue
        if is_choice(inner):
            named = {whole: value}
            if is_mapping_of_choices(hint):
                entries = value.items() if isinstance(value, Mapping) else ()
                named = {f"{whole}.{entry}": chosen for entry, chosen in entries}
            for place, chosen in named.items():
                path, arguments = chosen, None
                if isinstance(chosen, Mapping):
                    path, arguments = chosen.get(CLASS), chosen.get(ARGUMENTS)
                if isinstance(path, str) and (there := class_if_there(path, inner)) is not None:
                    yield from sections(arguments, there, place, absent=absent)
        elif absent or value is not None or type(None) not in get_args(hint):
            yield from sections(value, inner, whole, absent=absent)
