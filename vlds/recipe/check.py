"""Checks keys and classes of a recipe before jsonargparse parses it.

The parser's messages are about unions and import paths, and it imports whatever a saved recipe
names. Here a message names the key, shows the value and says the cure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from inspect import isabstract
from typing import Any

from vlds.recipe.choices import (
    class_named,
    concrete_classes,
    dataclass_of,
    field_types,
    is_choice,
    is_mapping_of_choices,
    required_fields,
)
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


def check_tree(tree: Any, options: type, *, saved: bool = False, complete: bool = False) -> None:
    """Check what files or the command line set in the dataclass `options`. `saved`: a run wrote the
    recipe, perhaps someone else's; `complete`: fields without a default must be set.

    Errors: ValueError that names the key, the value and the cure.
    """
    for message in faults(tree, Place(options, saved=saved), complete):
        raise ValueError(message)


def faults(value: Any, place: Place, complete: bool) -> Iterator[str]:
    """What is wrong inside the fields of a dataclass."""
    if not isinstance(value, Mapping):
        if place.saved:
            where = f"{place.whole_key}: " if place.whole_key else ""
            yield f"{where}got {value!r:.100}; give a mapping of keys, as saved recipes have"
        return
    types = field_types(place.cls)
    for name, entry in value.items():
        if name not in types:
            # The parser splits dotted keys.
            if place.saved or "." not in str(name):
                yield unknown_key(place, str(name), list(types))
            continue
        cls = dataclass_of(types[name])
        if cls is not None and entry is not None:
            yield from field_faults(entry, types[name], place.field(name, cls), complete)
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
    hint = guess(name, known, prefix)
    return f"{where}unknown key '{prefix}{name}'; {hint}{place.owner()} has: {', '.join(known)}"


def required(place: Place, missing: list[str]) -> str:
    """The message about fields that must be set."""
    names = ", ".join(f"{place.whole_key}.{name}".strip(".") for name in missing)
    are, them = ("is", "it") if len(missing) == 1 else ("are", "them")
    if place.cls.__name__ == "Recipe":
        return f"{names} {are} required; add {them} to the recipe, or --config FILE that has {them}"
    return f"{names} {are} required; set {them}"


# Messages of the parser about values, translated.

PARSER_KEY = re.compile(r'Parser key "([\w.]+)": ')
PARSER_CLASS = re.compile(r"Problem with given class_path '[\w.]+\.(\w+)': ")
PARSER_VALUE = re.compile(
    r"(?:Expected an? |Does not validate .*?: \[)(.*?)(?:\.|\] .*) (?:Got|Given) value: ?(.*)"
)
CURES = {
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
