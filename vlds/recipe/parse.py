"""Parses command lines and recipe files to dataclasses. The only file that knows jsonargparse.

A choice (model, backbone, vision encoder, method, task) is annotated with its abstract base, so a
new subclass in a new file reaches YAML, command line, help and the saved recipe without more code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args, get_origin

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from vlds.recipe.check import (
    ARGUMENTS,
    CHOICES,
    CLASS,
    check_tree,
    class_if_there,
    class_named,
    dataclass_of,
    explain,
    field_types,
    in_quotes,
    in_yaml,
    is_choice,
    is_mapping_of_choices,
)
from vlds.recipe.paths import WHOLE, merged, read_merged
from vlds.runtime.checks import check_leaves, not_finite, number_faults
from vlds.runtime.process import find
from vlds.runtime.terminal import tell

Options = TypeVar("Options")
CONFIG, PRINT = "--config", "--print_config"
FIELD_MESSAGE = re.compile(r"\w+(\.\w+)*: ")
"""Beginning of a message of `__post_init__` that names the field."""


def parse(
    options: type[Options], arguments: Sequence[str], prog: str, *, files: bool = False
) -> Options:
    """Build a dataclass from the command line; the docstrings of its fields are the help text.
    `files`: accept recipe files too, as `--config FILE`.

    Errors: ValueError that names the key or class, shows the value and lists the known names.
    """
    parser = build_parser(options, prog, files)
    if "--help" in arguments:
        # jsonargparse calls keys required that the recipe sets.
        page = re.sub(r"\(required,\s+", "(", parser.format_help())
        tell(page.replace("\b", ""), end="")  # jsonargparse writes [\b=flags]
        raise SystemExit(0)
    parsed = checked(parser, read_words(arguments, options), options)
    if PRINT in arguments:
        tell(parser.dump(parsed), end="")
        raise SystemExit(0)
    return build(options, parsed.as_dict())


def from_tree(options: type[Options], tree: Mapping[str, Any]) -> Options:
    """Build a dataclass from the tree of a recipe file.

    Errors: ValueError as `parse`.
    """
    parser = build_parser(options, options.__name__, files=False)
    return build(options, checked(parser, tree, options).as_dict())


def checked(parser: ArgumentParser, tree: Mapping[str, Any], options: type) -> Namespace:
    """What jsonargparse makes of a tree; ValueError for what is wrong with it."""
    # Our own checks first: their messages are better, and the parser would import what is named.
    check_leaves(tree)
    check_tree(tree, options, complete=True)
    try:
        parsed: Namespace = parser.parse_object(dict(tree))
    except (ArgumentError, ValueError, TypeError) as error:
        check_tree(tree, options, values=True)
        raise ValueError(explain(str(error))) from error
    return parsed


def build(cls: type[Options], values: Mapping[str, Any], key: str = "") -> Options:
    """Build a dataclass, and those inside it, from parsed values.

    Errors: ValueError with the dotted key before the message of `__post_init__`.
    """
    # Not jsonargparse's own instantiation: its errors do not name the key of a nested field.
    types = field_types(cls)
    fields = {
        name: build_field(types[name], value, f"{key}.{name}".strip("."))
        for name, value in values.items()
        if name in types
    }
    try:
        return cls(**fields)
    except ValueError as error:
        # "betas: got ..." in optimizer -> "optimizer.betas: got ..."; another text -> "KEY: TEXT".
        names_field = FIELD_MESSAGE.match(str(error)) is not None
        place = f"{key}{'.' if names_field else ': '}" if key else ""
        raise ValueError(f"{place}{error}") from error


def build_field(hint: Any, value: Any, key: str) -> Any:
    """Build the value of one field.

    Errors: ValueError for a number outside its type's limits, and for null in a field that needs a
    value, which the parser lets through; and as `build`.
    """
    cls = dataclass_of(hint)
    if value is None and type(None) not in get_args(hint):
        raise ValueError(f"{key}: got null; give a value, or leave the key out")
    if cls is None or not isinstance(value, Mapping):
        check_names(value, hint, key)
        if not isinstance(value, int | float):  # name the entry of a list or mapping
            for name, number in not_finite(value, key):
                raise ValueError(f"{name}: got {number}; give a finite number")
        for fault in number_faults(value, hint):
            raise ValueError(f"{key}: {fault}")
        return value
    if is_mapping_of_choices(hint):
        check_names(value, hint, key)
        return {name: build_choice(cls, entry, f"{key}.{name}") for name, entry in value.items()}
    return build_choice(cls, value, key) if is_choice(cls) else build(cls, value, key)


def check_names(value: Any, hint: Any, key: str) -> None:
    """Errors: ValueError for a name that is not text, as YAML reads 8 or `no`, if the field is a
    mapping of names."""
    for part in (hint, *get_args(hint)):
        if get_origin(part) is not dict or not isinstance(value, Mapping):
            continue
        _, inside_hint = get_args(part)
        for name, entry in value.items():
            if not isinstance(name, str):
                raise ValueError(f"{key}: got the name {in_yaml(name)}; {in_quotes(name)}")
            check_names(entry, inside_hint, f"{key}.{name}")


def build_choice(base: type, value: Mapping[str, Any], key: str) -> Any:
    """Build a chosen class with its arguments."""
    cls = class_named(value[CLASS], base)
    assert cls is not None, value[CLASS]
    return build(cls, value.get(ARGUMENTS) or {}, key)


def read_words(arguments: Sequence[str], options: type) -> dict[str, Any]:
    """Read recipe files and options into one tree, in which later ones win.

    Errors: ValueError for a file that is not a recipe, or a word that is not an option.
    """
    tree: dict[str, Any] = {}
    words, known = iter(arguments), field_types(options)
    for word in words:
        option, equals, value = word.partition("=")
        if not option.startswith("--"):
            name, form = option.lstrip("-"), f"={value}" if equals else " VALUE"
            hint = f"did you mean --{name}{form}? " if name.split(".")[0] in known else ""
            raise ValueError(
                f"'{word}' is unexpected; {hint}a recipe comes first, then --KEY VALUE"
            )
        if option == PRINT:
            continue
        if not equals:
            # A negative number begins with one dash, so only two mean the next option.
            value = next(words, "--")
            if value.startswith("--"):
                if option != CONFIG:  # a flag of another trainer has no value
                    set_key(tree, option.removeprefix("--").split("."), "null", known)
                    check_tree(tree, options)
                raise ValueError(f"{option}: no value follows; write {option} VALUE")
        # In the order of the words: a file after an option overrides it.
        if option == CONFIG:
            file = find(value)  # or a shipped recipe of this name
            recipe = read_merged(file, options)
            try:
                check_tree(recipe, options)
            except ValueError as error:
                raise ValueError(f"{file}: {error}") from None
            tree = merged(tree, recipe, WHOLE)
        else:
            try:
                set_key(tree, option.removeprefix("--").split("."), value, known)
            except yaml.YAMLError:
                raise ValueError(
                    f"{option}: got {value!r:.100}, not YAML; check its brackets and quotes"
                ) from None
    return tree


def set_key(tree: dict[str, Any], names: list[str], given: Any, types: Mapping[str, Any]) -> None:
    """Set a key of the command line, such as tasks.vqa.weight, in a tree of fields of some `types`.
    A text is parsed later; here only the names of chosen classes matter."""
    name, *below = names
    hint = types.get(name)
    if below:
        set_below(inside(tree, name, hint), below, given, hint)
        return
    old = tree.get(name)
    tree[name] = given
    cls = dataclass_of(hint)
    if cls is None or not isinstance(given, str):
        return
    # `--alignment null`, or a whole section: `--data '{window: 8}'`.
    if given == "null" or given.startswith("{"):
        tree[name] = yaml.safe_load(given)
    elif not is_mapping_of_choices(hint) and is_choice(cls):
        # A newly chosen class keeps the old arguments that it has too.
        chosen = class_if_there(given, cls)
        arguments = old.get(ARGUMENTS) if isinstance(old, Mapping) else None
        fields = field_types(chosen) if chosen else {}
        shared = {key: value for key, value in (arguments or {}).items() if key in fields}
        tree[name] = {CLASS: given, ARGUMENTS: shared} if shared else {CLASS: given}


def set_below(tree: dict[str, Any], names: list[str], given: Any, hint: Any) -> None:
    """Set a key inside one field: a mapping of choices, a choice or another dataclass."""
    cls = dataclass_of(hint)
    if cls is None:
        set_key(tree, names, given, {})
    elif is_mapping_of_choices(hint):
        set_key(tree, names, given, {names[0]: cls})
    elif not is_choice(cls):
        set_key(tree, names, given, field_types(cls))
    elif names == [CLASS]:
        tree[CLASS] = given
    elif names == [ARGUMENTS]:
        tree[ARGUMENTS] = yaml.safe_load(given) if isinstance(given, str) else given
    else:
        # `--tasks.vqa.weight 3` leaves out init_args; files and some users write it.
        chosen = class_if_there(str(tree.get(CLASS)), cls)
        names = names[1:] if names[0] == ARGUMENTS else names
        set_key(inside(tree, ARGUMENTS), names, given, field_types(chosen) if chosen else {})


def inside(tree: dict[str, Any], name: str, hint: Any = None) -> dict[str, Any]:
    """The mapping under a name. The name of a class alone becomes one; other values give way, and
    the parser says what belongs there."""
    value = tree.get(name)
    cls = dataclass_of(hint)
    if isinstance(value, str) and cls is not None and is_choice(cls):
        value = {CLASS: value}
    child: dict[str, Any] = value if isinstance(value, dict) else {}
    tree[name] = child
    return child


def build_parser(options: type, prog: str, files: bool) -> ArgumentParser:
    """The parser of one dataclass; with `files`, it has `--config` too."""
    set_parsing_settings(
        subclasses_enabled=list(CHOICES), docstring_parse_attribute_docstrings=True
    )
    parser = ArgumentParser(
        prog=prog, description=options.__doc__, exit_on_error=False, allow_abbrev=False
    )
    if files:
        parser.add_argument(CONFIG, action="config", help="A recipe (YAML); may be repeated.")
    parser.add_class_arguments(options)
    return parser
