"""What is wrong with a recipe, in words that name the place, show the value and offer the cure.

jsonargparse finds the mistakes; its messages speak of parsers, unions and import paths. They are
read here by their fixed phrases, and pass as they are where none of them is in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from inspect import isabstract
from typing import Any, get_args, get_origin, get_type_hints

from vlds.runtime.near_names import guess

KEY = re.compile(r'Parser key "([\w.]+)": ')
CLASS = re.compile(r"Problem with given class_path '([\w.]+)': ")
GROUP_OPTION = re.compile(r"Group '([\w.]+)' does not accept option '([\w.]+)'")
OPTION = re.compile(r"Option '([\w.]+)' is not accepted")
ARGUMENT = re.compile(r"unrecognized arguments: (\S+)")
NO_CLASS = re.compile(r"Expected a dot import path string: (\S+)")
VALUE = re.compile(
    r"(?:Expected an? |Does not validate .*?: \[)(.*?)(?:\.|\] .*) (?:Got|Given) value: (.*)"
)
LACKING = re.compile(r"arguments are required: (.*)")
CURES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list, like [a, b]",
    "dict": "entries with a name each, like {name: ...}",
    "NoneType": "null",
}


@dataclass(frozen=True)
class Place:
    """Where in the recipe a message speaks of."""

    key: str
    """Dotted key from the top of the recipe; "" for the top itself."""
    owner: type
    """The class that has the field in question."""
    field: str
    """Dotted key from the owner."""

    @property
    def name(self) -> str:
        """For the user."""
        if not self.key:
            return self.field
        return f"{self.key}: {self.owner.__name__}.{self.field}" if self.field else self.key


def explain(message: str, options: type, tree: Mapping[str, Any]) -> str:
    """Say in our words what the parser says of a recipe (class `options`, values `tree`)."""
    text = " ".join(message.split())
    place, text = locate(text, options)
    if match := GROUP_OPTION.search(text):
        return unknown_key(place, f"{match[1]}.{match[2]}")
    if match := OPTION.search(text):
        return unknown_key(place, match[1])
    if match := ARGUMENT.search(text):
        if not match[1].startswith("-"):
            return f"'{match[1]}' is unexpected; a recipe comes first, then --KEY VALUE"
        return unknown_key(place, match[1].removeprefix("--").partition("=")[0])
    if match := NO_CLASS.search(text):
        return unknown_class(place, match[1])
    if " is abstract" in text or "Not a valid subclass" in text:
        return without_class(place, options, tree)
    if match := VALUE.search(text):
        return f"{place.name}: got {match[2]!r}; give {cure(match[1])}"
    if match := LACKING.search(text):
        return f"the recipe lacks {match[1]}; add it there, or name a recipe: `vlds train FILE`"
    if "Problems parsing config" in text:
        return "the recipe is not YAML: " + text.partition("config: ")[2].replace(
            '"<unicode string>", ', ""
        )
    return in_tree(text if place.key == "" else f"{place.name}: {text}", tree)


def locate(text: str, options: type) -> tuple[Place, str]:
    """The place that a message begins with, and the rest of the message."""
    key, owner, field = "", options, ""
    if match := KEY.match(text):
        field, text = match[1], text[match.end() :]
    if match := CLASS.search(text):
        found = find_class(match[1].split(".")[-1], base_of(Place("", options, field)))
        in_union = match.start() > 0
        text = text[match.end() :]
        if in_union:
            text = text.partition(" - Expected")[0]
        if found is None:
            return Place(field, options, ""), f"{match[1]}: {text}"
        key, owner, field = field, found, ""
        if match := KEY.match(text):
            field, text = match[1], text[match.end() :]
    return Place(key, owner, field), text


def unknown_key(place: Place, dotted: str) -> str:
    """No field is called so: name the first segment that is wrong, and those it could have been."""
    known = fields_of(place.owner)
    right: list[str] = []
    for segment in dotted.split("."):
        if segment not in known:
            break
        right.append(segment)
        known = fields_of(known[segment]) if is_dataclass(known[segment]) else {}
    top = "the recipe" if place.owner.__name__ == "Recipe" else place.owner.__name__
    where = f"{place.key}: " if place.key else ""
    return (
        f"{where}unknown key '{'.'.join([*right, segment])}'; "
        f"{guess(segment, known, ''.join(f'{name}.' for name in right))}"
        f"{'.'.join(right) or top} has: {', '.join(known)}"
    )


def check_entries(tree: Mapping[str, Any], options: type, source: str) -> None:
    """Check that the classes in a recipe's file stand where a recipe has them.

    Errors: ValueError that names `source`, the entry and its right form.
    """
    for key, base, entry in choices(tree, options):
        if key.endswith((".class_path", ".init_args")):
            place = key.rpartition(".")[0]
            raise ValueError(
                f"{source}: {place}: an entry has a name; write {place}: {{NAME: {{class_path: "
                f"{class_names(base)[0]}, ...}}}}"
            )
        beside = set(entry) - {"class_path", "init_args"} if isinstance(entry, Mapping) else ()
        if beside and "class_path" in entry:
            name = sorted(beside)[0]
            raise ValueError(
                f"{source}: {key}: '{name}' stands beside class_path; write {{class_path: "
                f"{entry['class_path']}, init_args: {{{name}: ...}}}}"
            )


def without_class(place: Place, options: type, tree: Mapping[str, Any]) -> str:
    """An entry does not say its class. `tree`: what the recipe's files hold."""
    key, base = place.name, base_of(place)
    for other, kind, entry in choices(tree, options):
        if not isinstance(entry, str) and "class_path" not in (entry or ()):
            key, base = other, kind
            break
    else:  # a key of the command line has made it
        known = tree.get(key)
        listed = ", ".join(map(str, known)) if isinstance(known, Mapping) and known else "none"
        key = f"{key}: a new entry beside {listed}, or one that is misspelt"
    names = class_names(base)
    return f"{key}: class_path is missing; write class_path: {names[0]}, or {', '.join(names[1:])}"


def choices(tree: Mapping[str, Any], options: type) -> Iterator[tuple[str, type, Any]]:
    """Key, base and value of each entry of a recipe's tree that is to name a class."""
    for key, hint in fields_of(options).items():
        base = base_of(Place("", options, key))
        if key not in tree or not isabstract(base):
            continue
        if get_origin(hint) is not dict:
            yield key, base, tree[key]
        elif isinstance(tree[key], Mapping):
            yield from ((f"{key}.{name}", base, entry) for name, entry in tree[key].items())


def unknown_class(place: Place, name: str) -> str:
    """No class is called so, or it is one of another kind."""
    base = base_of(place)
    known = class_names(base)
    choice = f"{guess(name, known)}choose from: {', '.join(known)}"
    return f"{place.name}: '{name}' is no {base.__name__}; {choice}"


def cure(expected: str) -> str:
    """What to give, from the parser's name of a type."""
    if "Literal[" in expected:
        return "one of " + expected.partition("[")[2].strip("]").replace("'", "")
    names = re.findall(r"<class '(?:[\w.]+\.)?(\w+)'>", expected)
    return " or ".join(CURES.get(name, name) for name in names) or expected


def in_tree(text: str, tree: Mapping[str, Any]) -> str:
    """Put the whole key in front of a message that begins with `field: `, where it is clear."""
    name = text.partition(":")[0]
    places = [
        key
        for key, value in leaves(tree)
        if key.endswith(f".{name}") and str(value) in text.partition(":")[2]
    ]
    return places[0].removesuffix(name) + text if len(places) == 1 else text


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values, without the parser's init_args."""
    for name, value in tree.items():
        key = prefix if name == "init_args" else f"{prefix}.{name}".lstrip(".")
        if isinstance(value, Mapping):
            yield from leaves(value, key)
        else:
            yield key, value


def fields_of(owner: type) -> dict[str, Any]:
    """Field name -> type of a dataclass."""
    hints = get_type_hints(owner)
    return {field.name: hints[field.name] for field in fields(owner)}


def base_of(place: Place) -> type:
    """The base of the classes that can stand at a place: T of `T | None`, `dict[str, T]`."""
    hint = fields_of(place.owner).get(place.field.split(".")[0], object)
    while get_origin(hint) is not None:
        hint = next(kind for kind in reversed(get_args(hint)) if kind is not type(None))
    return hint if isinstance(hint, type) else object


def class_names(base: type) -> list[str]:
    """Names of the concrete classes of a base."""
    return sorted(cls.__name__ for cls in all_classes(base) if not isabstract(cls))


def find_class(name: str, base: type) -> type | None:
    """The class of a base that is called so."""
    return next((cls for cls in all_classes(base) if cls.__name__ == name), None)


def all_classes(base: type) -> Sequence[type]:
    """A base and everything derived from it."""
    children: list[type] = base.__subclasses__()
    return [base, *(cls for child in children for cls in all_classes(child))]
