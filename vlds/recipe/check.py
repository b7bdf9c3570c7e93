"""Checks keys and classes of a recipe before jsonargparse parses it.

The parser's messages are about unions and import paths, and it imports whatever a saved recipe
names. Here a message names the key, shows the value and says the cure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from inspect import isabstract
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from vlds.recipe.choices import (
    class_named,
    concrete_classes,
    dataclass_of,
    field_types,
    is_choice,
    is_mapping_of_choices,
    required_fields,
)
from vlds.recipe.meant import hint_at
from vlds.runtime.checks import limits_of
from vlds.runtime.near_names import guess

CLASS, ARGUMENTS = "class_path", "init_args"


@dataclass(frozen=True)
class Place:
    """The position of a value in a recipe."""

    cls: type
    """The dataclass that the value describes, or whose field it is."""
    choice: str = ""
    """Dotted key of the innermost chosen class around the value; "" if there is none."""
    key: str = ""
    """Dotted key from that class on."""
    saved: bool = False
    """True if a run wrote the recipe: then only the form that runs write is valid."""
    values: bool = False
    """Look at the types of values too."""
    root: Any = None
    """The whole tree."""
    options: type = object
    """The dataclass that the whole tree describes."""

    @property
    def whole_key(self) -> str:
        """Dotted key from the top of the recipe."""
        return f"{self.choice}.{self.key}".strip(".")

    def field(self, name: str, cls: type) -> Place:
        """A field of this place's dataclass."""
        return replace(self, cls=cls, key=f"{self.key}.{name}".strip("."))

    def chosen(self, cls: type) -> Place:
        """The inside of a chosen class."""
        return replace(self, cls=cls, choice=self.whole_key, key="")

    def owner(self) -> str:
        """What to call the dataclass."""
        top = "the recipe" if self.cls.__name__ == "Recipe" else self.cls.__name__
        return self.key or top


def check_tree(
    tree: Any, options: type, *, saved: bool = False, complete: bool = False, values: bool = False
) -> None:
    """Check what files or the command line set in the dataclass `options`. `saved`: a run wrote the
    recipe, perhaps someone else's; `complete`: fields without a default must be set; `values`: the
    parser has refused a value.

    Errors: ValueError that names the key, the value and the cure.
    """
    place = Place(options, saved=saved, values=values, root=tree, options=options)
    for message in faults(tree, place, complete):
        raise ValueError(message)


def faults(value: Any, place: Place, complete: bool) -> Iterator[str]:
    """What is wrong inside the fields of a dataclass."""
    if not isinstance(value, Mapping):
        where = f"{place.whole_key}: " if place.whole_key else ""
        form = "as saved recipes have" if place.saved else f"like {{{example(place.cls)}: ...}}"
        yield f"{where}got {value!r:.100}; give a mapping of keys, {form}"
        return
    types = field_types(place.cls)
    for name, entry in value.items():
        key = f"{place.whole_key}.{name}".strip(".")
        if name not in types:
            if not isinstance(name, str):
                yield (
                    f"{key}: {in_yaml(name)} stands where a key belongs; keys are text, and the "
                    "comma of a number is a point in YAML: 0.001"
                )
            # The parser splits dotted keys.
            if place.saved or "." not in str(name):
                yield unknown_key(place, str(name), list(types))
            continue
        cls = dataclass_of(types[name])
        if entry is None:
            if type(None) not in get_args(types[name]):
                needed = name in required_fields(place.cls)
                yield f"{key}: got null; give a value{'' if needed else ', or leave the key out'}"
        elif cls is not None:
            yield from field_faults(entry, types[name], place.field(name, cls), complete)
        else:
            yield from key_faults(entry, key)
            if place.values:
                yield from value_faults(entry, types[name], key)
    present = {str(name).partition(".")[0] for name in value}
    missing = [name for name in required_fields(place.cls) if name not in present]
    if complete and missing:
        yield required(place, missing)


def field_faults(value: Any, hint: Any, place: Place, complete: bool) -> Iterator[str]:
    """What is wrong in one field that holds dataclasses."""
    if not is_mapping_of_choices(hint):
        inside = choice_faults if is_choice(place.cls) else faults
        yield from inside(value, place, complete)
    elif isinstance(value, Mapping):
        key = place.whole_key
        if CLASS in value or ARGUMENTS in value:
            first = next(iter(concrete_classes(place.cls)))
            yield f"{key}: an entry has a name; write {key}: {{NAME: {{{CLASS}: {first}, ...}}}}"
        for name, entry in value.items():
            if not isinstance(name, str):
                yield f"{key}: got the name {in_yaml(name)}; {in_quotes(name)}"
            near = guess(str(name), [str(other) for other in value if other != name])
            yield from choice_faults(entry, place.field(str(name), place.cls), complete, near)
    elif place.saved:
        yield from faults(value, place, complete)


def choice_faults(value: Any, place: Place, complete: bool, near: str = "") -> Iterator[str]:
    """What is wrong with a value that chooses a class: its name, or class_path and init_args.
    `near`: a hint at a similar entry, such as "did you mean ...? "."""
    key = place.whole_key
    names = sorted(concrete_classes(place.cls))
    if isinstance(value, str) and not place.saved:
        value = {CLASS: value}
    if not isinstance(value, Mapping) or CLASS not in value:
        if place.saved:
            yield f"{key}: a saved recipe has {CLASS} and {ARGUMENTS}"
        elif value is None or isinstance(value, Mapping):
            others = f", or {', '.join(names[1:])}" if names[1:] else ""
            yield f"{key}: {CLASS} is missing; {near}write {CLASS}: {names[0]}{others}"
        return
    if misplaced := sorted(map(str, value.keys() - {CLASS, ARGUMENTS})):
        yield (
            f"{key}: '{misplaced[0]}' is next to {CLASS}; write {{{CLASS}: {value[CLASS]}, "
            f"{ARGUMENTS}: {{{misplaced[0]}: ...}}}}"
        )
    try:
        cls = class_named(str(value[CLASS]), place.cls)
    except ImportError as error:
        yield f"{key}: {value[CLASS]}: {error}"
        return
    if cls is None or isabstract(cls):
        choice = f"{guess(str(value[CLASS]), names)}choose from: {', '.join(names)}"
        yield f"{key}: '{value[CLASS]}' is not a {place.cls.__name__}; {choice}"
    elif not isinstance(arguments := value.get(ARGUMENTS) or {}, Mapping):
        yield f"{key}: {ARGUMENTS}: got {arguments!r:.100}; give a mapping of keys"
    else:
        yield from faults(arguments, place.chosen(cls), complete)


def unknown_key(place: Place, name: str, known: list[str]) -> str:
    """The message about an unknown key: a near one, and all that there are."""
    prefix = f"{place.key}." if place.key else ""
    where = f"{place.choice}: " if place.choice else ""
    here = f"{place.choice}.{place.key}".strip(".")
    hint = hint_at(name, here, known, place.root, place.options)
    if place.choice:  # whose key the message begins with
        hint = hint.replace(f"'{place.choice}.", "'")
    return f"{where}unknown key '{prefix}{name}'; {hint}{place.owner()} has: {', '.join(known)}"


def required(place: Place, missing: list[str]) -> str:
    """The message about fields that must be set."""
    names = ", ".join(f"{place.whole_key}.{name}".strip(".") for name in missing)
    are, them = ("is", "it") if len(missing) == 1 else ("are", "them")
    if place.cls.__name__ == "Recipe":
        return f"{names} {are} required; add {them} to the recipe, or --config FILE that has {them}"
    return f"{names} {are} required; set {them}"


# Values.


def example(cls: type) -> str:
    """The name of a dataclass's first field."""
    return next(iter(field_types(cls)))


def key_faults(value: Any, key: str) -> Iterator[str]:
    """What is wrong with the names in mappings inside a value: all are texts."""
    if isinstance(value, Mapping):
        for name, entry in value.items():
            if not isinstance(name, str):
                yield f"{key}: got the name {in_yaml(name)}; {in_quotes(name)}"
            yield from key_faults(entry, f"{key}.{name}")


def value_faults(value: Any, hint: Any, key: str) -> Iterator[str]:
    """What is wrong with the type of a value; of a list or mapping, with the type of an entry."""
    readings = [value, read_text(value)] if isinstance(value, str) else [value]
    if any(fits(reading, hint) for reading in readings):
        return
    for branch in branches_of(hint):
        (entry_type, *_), reading = (get_args(branch) or (None,)), readings[-1]
        if get_origin(branch) in (list, tuple) and isinstance(reading, list):
            for entry in reading:
                yield from value_faults(entry, entry_type, key)
        elif get_origin(branch) is dict and isinstance(reading, Mapping):
            for name, entry in reading.items():
                yield from value_faults(entry, get_args(branch)[1], f"{key}.{name}")
    wants_text = str in branches_of(hint)
    got = in_yaml(value) if not isinstance(value, str) else repr(value)
    quoted = wants_text and not isinstance(value, (list, Mapping))
    yield f"{key}: got {got:.100}; {in_quotes(value) if quoted else f'give {wanted(hint)}'}"


def read_text(text: str) -> Any:
    """What the parser reads a text of the command line as."""
    try:
        value = yaml.safe_load(text)
        return float(value) if isinstance(value, str) else value
    except (yaml.YAMLError, ValueError):
        return text


def branches_of(hint: Any) -> list[Any]:
    """The types of a union, or the one type, without limits."""
    is_union = get_origin(hint) in (Union, UnionType)
    parts = get_args(hint) if is_union else (hint,)
    return [part.__origin__ if hasattr(part, "__metadata__") else part for part in parts]


def fits(value: Any, hint: Any) -> bool:
    """True if the parser takes a value for a type."""
    for branch in branches_of(hint):
        origin, inner = get_origin(branch), get_args(branch)
        if origin is Literal:
            fit = value in inner
        elif origin in (list, tuple):
            fit = isinstance(value, list) and all(fits(entry, inner[0]) for entry in value)
        elif origin is dict:
            fit = isinstance(value, Mapping) and all(fits(v, inner[1]) for v in value.values())
        elif branch in (int, float):
            kinds = (int, float) if branch is float else (int,)
            fit = isinstance(value, kinds) and not isinstance(value, bool)
        else:
            # From Python 3.11 on, Any is a class too.
            fit = branch is Any or not isinstance(branch, type) or isinstance(value, branch)
        if fit:
            return True
    return False


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


# Messages of the parser about values, translated.

PARSER_KEY = re.compile(r'Parser key "([\w.]+)": ')
PARSER_CLASS = re.compile(r"Problem with given class_path '[\w.]+\.(\w+)': ")
PARSER_VALUE = re.compile(
    r"(?:Expected an? |Does not validate .*?: \[)(.*?)(?:\.|\] .*) (?:Got|Given) value: ?(.*)"
)
CURES = {
    "tuple": "a list, like [a, b]",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list, like [a, b]",
    "dict": "entries with a name each, like {name: ...}",
    "NoneType": "null",
}


def explain(message: str) -> str:
    """Translate a message of jsonargparse about a value; others stay as they are."""
    text = " ".join(message.split())
    names = []
    while match := PARSER_KEY.match(text) or PARSER_CLASS.search(text):
        names.append(match[1])
        text = text[match.end() :]
        if match.start() > 0:  # a branch of a union: the parser lists the other branches after it
            text = text.partition(" - Expected")[0]
    # KEY, or KEY: CLASS.FIELD
    place = names[0] + "".join(f": {'.'.join(names[1:])}" if names[1:] else "") if names else ""
    text = text.partition(" - Parser key")[0]  # which says the same again
    if match := PARSER_VALUE.search(text):
        text = f"got {match[2]!r}; give {cure(match[1])}"
    return f"{place}: {text}" if place else text


def cure(expected: str) -> str:
    """What to give, from the parser's name of a type."""
    classes = re.findall(r"<class '(?:[\w.]+\.)?(\w+)'>|\b(list|dict)\[", expected)
    names = [CURES.get(name, name) for name in map("".join, classes)]
    if words := re.findall(r"Literal\[(.*?)\]", expected):
        return "one of " + ", ".join([*words, *names]).replace("'", "")
    return " or ".join(names) or expected
