"""Builds a recipe's dataclasses from the tree of its file, and trees from dataclasses.

One walk follows the types of the fields, so that each fault is found where its place is known: the
message names the key, shows the value and says the cure. pydantic says whether a value fits the
type of its field, which holds no dataclass. It does not build the dataclasses too: it would have to
be told about choices, about defaults that other classes set and about every message.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from inspect import isabstract
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

import yaml

from vlds.recipe.choices import (
    ARGUMENTS,
    CLASS,
    branches_of,
    class_named,
    concrete_classes,
    dataclass_of,
    field_types,
    hint_at,
    is_choice,
    is_mapping_of_choices,
    last,
    takes_null,
)
from vlds.recipe.paths import undotted
from vlds.runtime.checks import check_leaves, closest, guess, limits_of, not_finite, number_faults
from vlds.runtime.terminal import without_credentials
from vlds.runtime.yaml_file import parse_yaml

Options = TypeVar("Options")
FIELD_MESSAGE = re.compile(r"\w+(\.\w+)*: ")
"""Beginning of a message of `__post_init__` that names the field."""


def build(options: type[Options], tree: Any) -> Options:
    """Build a dataclass from the tree of a recipe's file or of a command line.

    Errors: ValueError that names the key or class, shows the value and lists the known names.
    """
    check_leaves(tree)
    built: Options = Builder(tree, options).made(options, tree)
    return built


def check_part(tree: Any, options: type, *, saved: bool = False) -> None:
    """Check the keys and classes of a tree that other files and words may complete and change.
    `saved`: a run wrote it, perhaps someone else's: then only the form that runs write is valid.

    Errors: ValueError as `build`.
    """
    check_leaves(tree)
    Builder(tree, options, saved, is_whole=False).made(options, tree)


@dataclass(frozen=True)
class Builder:
    """Builds the dataclass `options` from a tree, or only checks a part of one."""

    tree: Any
    options: type
    saved: bool = False
    is_whole: bool = True

    def made(
        self, cls: type, tree: Any, key: str = "", choice: str = "", default: Any = None
    ) -> Any:
        """A dataclass from the tree of its fields; None if that is only a part. `choice`: dotted
        key of the innermost chosen class; `default`: sets the fields that are not given."""
        types = field_types(cls)
        if not isinstance(tree, Mapping):
            form = f"like {{{next(iter(types))}: ...}}"
            self.fail(key, f"got {tree!r:.100}; give a mapping of keys, {self.form(form)}")
        # A default may have other values than its class, as VQA's `decoding`; a class in its place
        # keeps those that it has too: a Mixture of LoRA shares what a Mixture of Adapter does.
        theirs = {} if default is None else field_types(default.__class__)
        given = {n: getattr(default, n) for n, hint in types.items() if theirs.get(n) == hint}
        for name, value in (tree if self.saved else undotted(tree)).items():
            if name not in types:
                self.refuse_key(name, cls, key, choice)
            given[name] = self.field(cls, name, value, f"{key}.{name}".strip("."), choice)
        if not self.is_whole:
            return None
        if missing := [name for name in required_fields(cls) if name not in given]:
            names = ", ".join(f"{key}.{name}".strip(".") for name in missing)
            are, them = ("is", "it") if len(missing) == 1 else ("are", "them")
            where = f"add {them} to the recipe, or --config FILE that has {them}"
            cure = where if cls.__name__ == "Recipe" else f"set {them}"
            raise ValueError(f"{names} {are} required; {cure}")
        try:
            return cls(**given)
        except ValueError as error:
            # betas: TEXT -> optimizer.betas: TEXT; another TEXT -> optimizer: TEXT
            names_field = FIELD_MESSAGE.match(str(error)) is not None
            place = f"{key}{'.' if names_field else ': '}" if key else ""
            raise ValueError(f"{place}{error}") from error

    def field(self, cls: type, name: str, value: Any, key: str, choice: str) -> Any:
        """The value of one field."""
        hint = field_types(cls)[name]
        inner = dataclass_of(hint)
        if value is None:
            if not takes_null(hint):
                either = "" if name in required_fields(cls) else ", or leave the key out"
                self.fail(key, f"got null; give a value{either}")
            return None
        if inner is None:
            check_names(value, key)
            if self.is_whole:
                return leaf(value, hint, key)
            check_kind(value, hint, key)
            return None
        if not is_mapping_of_choices(hint):
            default = default_of(cls, name)
            if is_choice(inner):
                return self.chosen(inner, value, key, default)
            return self.made(inner, value, key, choice, default)
        if not isinstance(value, Mapping):
            self.fail(key, f"got {shown(value)}; give {self.form(CURES['dict'])}")
        if CLASS in value or ARGUMENTS in value:
            first = next(iter(concrete_classes(inner)))
            entry = f"{{NAME: {{{CLASS}: {first}, ...}}}}"
            self.fail(key, f"an entry has a name; write {key}: {entry}")
        check_names(value, key, deep=False)
        return {
            entry: self.chosen(inner, chosen, f"{key}.{entry}", others=value.keys() - {entry})
            for entry, chosen in value.items()
        }

    def chosen(
        self, base: type, value: Any, key: str, default: Any = None, others: Set[str] = frozenset()
    ) -> Any:
        """The class that a value chooses by its name, or by class_path and init_args. `others`:
        names of the entries next to this one."""
        names = sorted(concrete_classes(base))
        if isinstance(value, str) and not self.saved:
            value = {CLASS: value}
        if not isinstance(value, Mapping) or CLASS not in value:
            if self.saved:
                self.fail(key, f"a saved recipe has {CLASS} and {ARGUMENTS}")
            is_nothing = value is None or isinstance(value, Mapping)
            got = f"{CLASS} is missing" if is_nothing else f"got {shown(value)}"
            near = guess(last(key), sorted(others))
            choice = ", or ".join(filter(None, [names[0], ", ".join(names[1:])]))
            if others:
                near += f"the recipe has {', '.join(sorted(others))}; for another one, "
                choice = closest(last(key), names) or choice
            self.fail(key, f"{got}; {near}write {CLASS}: {choice}")
        path = str(value[CLASS])
        if misplaced := sorted(map(str, value.keys() - {CLASS, ARGUMENTS})):
            inside = f"{{{CLASS}: {path:.100}, {ARGUMENTS}: {{{misplaced[0]}: ...}}}}"
            self.fail(key, f"'{misplaced[0]}' is next to {CLASS}; write {inside}")
        try:
            cls = class_named(path, base)
        except ImportError as error:
            here = Path(f"{path.partition('.')[0]}.py").is_file()
            cure = "; its file is here: set PYTHONPATH=. in the environment" if here else ""
            self.fail(key, f"{path:.100}: {error!s:.200}{cure}")
        if cls is None or isabstract(cls):
            known = f"{guess(path, names)}choose from: {', '.join(names)}"
            self.fail(key, f"'{path:.100}' is not a {base.__name__}; {known}")
        arguments = value.get(ARGUMENTS)
        if not isinstance(arguments, Mapping | None):
            self.fail(key, f"{ARGUMENTS}: got {arguments!r:.100}; give a mapping of keys")
        return self.made(cls, arguments or {}, key, key, default)

    def fail(self, key: str, text: str) -> NoReturn:
        """Raise the error of a key."""
        raise ValueError(f"{key}: {text}" if key else text)

    def form(self, example: str) -> str:
        """What a mapping looks like, in words."""
        return "as saved recipes have" if self.saved else example

    def refuse_key(self, name: object, cls: type, key: str, choice: str) -> NoReturn:
        """Raise the error of a key that a dataclass does not have."""
        if not isinstance(name, str):
            raise ValueError(
                f"{f'{key}.{name}'.strip('.')}: {in_yaml(name)} stands where a key belongs; keys "
                "are text, and the comma of a number is a point in YAML: 0.001"
            )
        known = list(field_types(cls))
        hint = hint_at(name, key, known, self.tree, self.options)
        top = "the recipe" if cls.__name__ == "Recipe" else cls.__name__
        inside = key.removeprefix(choice).strip(".")
        if choice:  # whose key the message begins with
            hint = hint.replace(f"'{choice}.", "'")
        unknown = f"{inside}.{name}" if inside else name
        self.fail(choice, f"unknown key '{unknown}'; {hint}{inside or top} has: {', '.join(known)}")


def required_fields(cls: type) -> list[str]:
    """The fields without a default."""
    return [
        field.name
        for field in fields(cls)
        if field.init and field.default is MISSING and field.default_factory is MISSING
    ]


def default_of(cls: type, name: str) -> Any:
    """The default of a field; None if there is none."""
    (field,) = (field for field in fields(cls) if field.name == name)
    if field.default_factory is not MISSING:
        return field.default_factory()
    return None if field.default is MISSING else field.default


# Values of fields that hold no dataclasses.


def leaf(value: Any, hint: Any, key: str) -> Any:
    """The value of a field, as its type has it.

    Errors: ValueError for a value of another type, or a number outside its type's limits.
    """
    for reading in readings(value, hint):
        with suppress(ValueError):
            found = fitted(reading, hint)
            break
    else:
        raise ValueError(misfit(value, hint, key))
    if not isinstance(found, int | float):  # name the entry of a list or mapping
        for name, number in not_finite(found, key):
            raise ValueError(f"{name}: got {number}; give a finite number")
    for fault in number_faults(found, hint):
        raise ValueError(f"{key}: {fault}")
    return found


def check_kind(value: Any, hint: Any, key: str) -> None:
    """As `leaf`, for a part of a recipe that is looked at before any library is imported: numbers,
    texts and lists of them, without pydantic.

    Errors: ValueError with the same message.
    """
    fitting = (reading for reading in readings(value, hint) if may_be(reading, hint))
    found = next(fitting, fitting)
    if found is fitting:
        raise ValueError(misfit(value, hint, key))
    is_float = {float, int} & {*types_in(hint)} == {float}
    for fault in number_faults(in_floats(found) if is_float else found, hint):
        raise ValueError(f"{key}: {fault}")


def in_floats(value: Any) -> Any:
    """A value whose whole numbers are floats, as `fitted` returns it."""
    if isinstance(value, list):
        return [in_floats(entry) for entry in value]
    # Through text, which is infinite where `float` of a whole number raises OverflowError.
    return float(str(value)) if type(value) is int else value


def may_be(value: Any, hint: Any) -> bool:
    """False if a value cannot be of a type; True for types that only pydantic knows."""
    for branch in branches_of(hint):
        origin = get_origin(branch)
        if origin is Literal:
            fits = value in get_args(branch)
        elif origin in (list, tuple, Sequence):
            fits = isinstance(value, list) and all(may_be(v, get_args(branch)[0]) for v in value)
        elif origin is dict:
            fits = isinstance(value, Mapping)
        elif branch in (int, float):
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            fits = is_number and (branch is float or value == value // 1)
        else:
            fits = not isinstance(branch, type) or isinstance(value, branch)
        if fits:
            return True
    return False


def fitted(value: Any, hint: Any) -> Any:
    """A value as its type has it: whole numbers become floats, and lists tuples, but nothing else
    is converted.

    Errors: ValueError if it does not fit.
    """
    # Only in JSON does pydantic take a list for a tuple, but still no text for a number in it. A
    # text may be a file's name with bytes that are not UTF-8, which JSON cannot hold.
    if isinstance(value, str):
        with suppress(ValueError):
            return adapter(hint).validate_python(value, strict=True)
    check_names(value, "")  # json would make texts of them
    try:
        text = json.dumps(value)
    except TypeError as error:  # YAML has dates and sets, too
        raise ValueError(str(error)) from None
    return adapter(hint).validate_json(text, strict=True)


@cache
def adapter(hint: Any) -> Any:
    """What checks values of a type. Cached, since making one takes longer than a hundred checks."""
    from pydantic import TypeAdapter  # takes 0.2 s, which is too long for `--help`

    return TypeAdapter(hint)


def readings(value: Any, hint: Any) -> Iterator[Any]:
    """What a value may stand for, the likeliest first. A text of the command line may be a number,
    a list or null; and in files, too, YAML reads 1e-3 as a text."""
    reading = read_texts(value)
    is_opened = isinstance(value, str) and isinstance(reading, list | dict)
    # For `float | str`, 60 is a number, not a text.
    if is_opened or reading is None or {float, str} <= set(types_in(hint)):
        yield reading
    yield from (value, reading)
    if is_opened:  # its texts, too: [0.9, '0.99']
        yield read_texts(reading)


def types_in(hint: Any) -> Iterator[Any]:
    """A type and those inside it."""
    yield hint
    for part in get_args(hint):
        yield from types_in(part)


def read_texts(value: Any) -> Any:
    """A value with all its texts as what they stand for."""
    if isinstance(value, list):
        return [read_texts(entry) for entry in value]
    if isinstance(value, Mapping):
        return {name: read_texts(entry) for name, entry in value.items()}
    if not isinstance(value, str) or not value.strip():
        return value
    # First as Python reads numbers: YAML 1.1 wants a point in 1e-3, and takes 017 for 15.
    for number in (int, float):
        with suppress(ValueError):
            return number(value)
    with suppress(ValueError):
        parse_yaml(value, "")  # has bounds
        return yaml.load(value, TextLoader)
    return value


class TextLoader(yaml.SafeLoader):
    """Reads 1e-3 as a number in lists and mappings, too."""


TextLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def check_names(value: Any, key: str, *, deep: bool = True) -> None:
    """Errors: ValueError for a name in a mapping that is not text, as YAML reads 8 or `no`."""
    for name, entry in value.items() if isinstance(value, Mapping) else ():
        if not isinstance(name, str):
            raise ValueError(f"{key}: got the name {in_yaml(name)}; {in_quotes(name)}")
        if deep:
            check_names(entry, f"{key}.{name}")


def misfit(value: Any, hint: Any, key: str) -> str:
    """What is wrong with a value that does not fit its type. Where an entry of a list or mapping is
    to blame, its own message."""
    reading = read_texts(value) if isinstance(value, str) else value
    for branch in branches_of(hint):
        origin, (*_, inner) = get_origin(branch), (get_args(branch) or (None,))
        entries: list[tuple[str, Any]] = []
        if origin is dict and isinstance(reading, Mapping):
            entries = [(f"{key}.{name}", entry) for name, entry in reading.items()]
        elif origin in (list, tuple, Sequence) and isinstance(reading, list):
            inner = get_args(branch)[0]  # of tuple[str, ...]
            entries = [(key, entry) for entry in reading]
        try:
            check_names(reading if origin is dict else None, key)
            for place, entry in entries:
                leaf(entry, inner, place)
        except ValueError as error:
            return str(error)
    quoted = str in branches_of(hint) and not isinstance(value, (list, Mapping))
    return f"{key}: got {shown(value)}; {in_quotes(value) if quoted else f'give {wanted(hint)}'}"


def shown(value: Any) -> str:
    """The beginning of a value in a message."""
    return f"{value!r:.100}" if isinstance(value, str) else f"{in_yaml(value):.100}"


CURES = {
    "tuple": "a list, like [a, b]",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list, like [a, b]",
    "Sequence": "a list, like [a, b]",
    "dict": "entries with a name each, like {name: ...}",
    "NoneType": "null",
}
"""Types in words."""


def wanted(hint: Any) -> str:
    """What to give for a type, in words."""
    words = []
    for branch in branches_of(hint):
        origin = get_origin(branch)
        if origin is Literal:
            words.append("one of " + ", ".join(map(str, get_args(branch))))
        else:
            words.append(CURES.get((origin or branch).__name__, str(branch)))
        if branch in (int, float) and (limits := limits_of(hint)) is not None:
            words[-1] += f" ({str(limits).removeprefix('a number ')})"
    return " or ".join(words)


def in_yaml(value: Any) -> str:
    """A value as a recipe writes it."""
    # On one line, however long: it goes into a message.
    if isinstance(value, (list, Mapping)):
        return yaml.safe_dump(value, default_flow_style=True, width=1000).strip()
    return "null" if value is None else str(value).lower() if value in (True, False) else str(value)


def in_quotes(value: Any) -> str:
    """The cure for a value that should be text."""
    if isinstance(value, bool):
        words, word = ("yes, on or true", "yes") if value else ("no, off or false", "no")
        return (
            f'that is how YAML reads a bare {words}; give text: write it in quotes, like "{word}"'
        )
    return f'give text: write it in quotes, like "{in_yaml(value)}"'


# The way back.


def to_tree(value: Any) -> Any:
    """The plain dicts, lists and scalars of a recipe, to store or show. Choices keep their class;
    URLs lose their credentials."""
    if is_dataclass(value) and not isinstance(value, type):
        tree = {f.name: to_tree(getattr(value, f.name)) for f in fields(value) if f.init}
        if not is_choice(type(value)):
            return tree
        # Classes of vlds by name: they may move to another module, and old runs still load.
        cls = type(value)
        shipped = cls.__module__.startswith("vlds.")
        path = cls.__name__ if shipped else f"{cls.__module__}.{cls.__qualname__}"
        return {CLASS: path, ARGUMENTS: tree}
    if isinstance(value, dict):
        return {key: to_tree(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_tree(entry) for entry in value]
    return without_credentials(value) if isinstance(value, str) else value


MAX_WIDTH = 1_000_000
"""Columns. Narrower, YAML would fold long paths at blanks, so that they cannot be copied."""


def to_yaml(tree: Any) -> str:
    """A tree as the text of a recipe's file."""
    return yaml.safe_dump(tree, sort_keys=False, width=MAX_WIDTH)
