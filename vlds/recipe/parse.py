"""Reads command lines and recipe files into one tree, from which the dataclasses are built.

A choice (model, backbone, vision encoder, method, task) is annotated with its abstract base, so a
new subclass in a new file reaches YAML, command line, help and the saved recipe without more code.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from itertools import pairwise
from typing import Any, TypeVar, get_origin

import yaml

from vlds.recipe.build import (
    build,
    check_part,
    default_of,
    in_yaml,
    read_texts,
    required_fields,
    to_tree,
    to_yaml,
    types_in,
    wanted,
)
from vlds.recipe.choices import (
    ARGUMENTS,
    CLASS,
    branches_of,
    class_if_there,
    concrete_classes,
    dataclass_of,
    field_types,
    is_choice,
    is_mapping_of_choices,
    sections,
    takes_null,
)
from vlds.recipe.paths import INSTEAD, WHOLE, merged, read_merged, renamed, shipped_or_given, unset
from vlds.runtime.process import find
from vlds.runtime.terminal import tell

Options = TypeVar("Options")
CONFIG, HELP, PRINT = "--config", "--help", "--print-config"
FORMS = {
    "tasks": "is a recipe, for `vlds train`; a sweep has `recipes`, a list, like sweeps/demo.yaml",
    "recipes": "is a sweep, for `vlds sweep`; a recipe has a model, methods and tasks",
}
"""Key that files of one form have -> what to say where another form is wanted."""


def parse(
    options: type[Options], arguments: Sequence[str], prog: str, *, files: bool = False
) -> Options:
    """Build a dataclass from the command line; the docstrings of its fields are the help text.
    `files`: accept recipe files too, as `--config FILE`.

    Errors: ValueError that names the key or class, shows the value and lists the known names.
    """
    tree = read_words([word for word in arguments if word not in (HELP, PRINT)], options)
    if HELP in arguments:
        tell(help_page(options, tree, prog, files), end="")
        raise SystemExit(0)
    value = build(options, tree)
    if PRINT in arguments:
        tell(to_yaml(to_tree(value)), end="")
        raise SystemExit(0)
    return value


def named_first(words: Sequence[str], prog: str) -> list[str]:
    """A command line that names its recipe first, with `--config` before it.

    Errors: ValueError if it names none.
    """
    # The usual way: vlds train recipes/demo.yaml --training.steps 10.
    if words and not words[0].startswith("-"):
        return [CONFIG, *words]
    if {CONFIG, HELP}.isdisjoint(word.partition("=")[0] for word in words):
        raise ValueError(
            "name a recipe first, your own file or a recipe of vlds, then keys: "
            f"{prog} recipes/demo.yaml --KEY VALUE"
        )
    return [*words]


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
        if not equals:
            # A negative number begins with one dash, so only two mean the next option.
            value = next(words, "--")
            if value.startswith("--"):
                if option != CONFIG:  # a flag of another trainer has no value
                    set_key(tree, option.removeprefix("--").split("."), "null", known)
                    check_part(tree, options)
                raise ValueError(f"{option}: no value follows; write {option} VALUE")
        # In the order of the words: a file after an option overrides it.
        if option == CONFIG:
            file = find(value)  # or a shipped recipe of this name
            tree, recipe = unset(tree, read_merged(file, options), options)
            for key, form in FORMS.items():
                if key in recipe and key not in known:
                    raise ValueError(f"{file} {form}")
            try:
                check_part(recipe, options)
            except ValueError as error:
                raise ValueError(f"{file}: {error}") from None
            tree = merged(tree, recipe, WHOLE)
        else:
            try:
                set_key(tree, option.removeprefix("--").split("."), value, known)
            except (yaml.YAMLError, ValueError):  # a date or number that Python refuses
                raise ValueError(
                    f"{option}: got {value!r:.100}, not YAML; check its brackets and quotes"
                ) from None
    placed: dict[str, Any] = renamed(tree, options, shipped_or_given)
    return placed


def set_key(tree: dict[str, Any], names: list[str], given: Any, types: Mapping[str, Any]) -> None:
    """Set a key of the command line, such as tasks.vqa.weight, in a tree of fields of some `types`.
    A text is parsed later; here only the names of chosen classes matter."""
    name, *below = names
    hint = types.get(name)
    if below:
        set_below(inside(tree, name, hint), below, given, hint)
        return
    # As null in a file over a base: the default comes back, and a task or method is left out.
    if given == "null" and name in tree and hint not in (None, Any) and not takes_null(hint):
        del tree[name]
        return
    if given != "null" and (other := INSTEAD.get(name, "")) in types:
        tree.pop(other, None)
    old = tree.get(name)
    # Lists are read here already, so that files in them can be looked for.
    is_list = any(get_origin(branch) in (list, tuple) for branch in branches_of(hint))
    is_opened = isinstance(given, str) and given.startswith("[")
    tree[name] = read_texts(given) if is_list and is_opened else given
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
        # No type tells a mapping from a text: `--overrides.optimizer '{learning_rate: 1e-3}'`.
        is_free = isinstance(given, str) and given[:1] in ("[", "{") and Any in types_in(hint)
        set_key(tree, names, read_texts(given) if is_free else given, {})
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


def help_page(options: type, tree: Any, prog: str, files: bool) -> str:
    """All keys with the docstrings of their fields, those of the tree's classes too."""
    usage = f"{prog} {'RECIPE ' * files}[--KEY VALUE ...]"
    parser = argparse.ArgumentParser(prog, usage, options.__doc__, add_help=False)
    if files:
        words = parser.add_argument_group("options")
        words.add_argument(CONFIG, metavar="FILE", help="a recipe (YAML); may be repeated")
        words.add_argument(PRINT, action="store_true", help="print the whole recipe, and exit")
    for key, cls in sections(tree, options, absent=True):
        group = parser.add_argument_group(key or "keys", cls.__doc__ if key else None)
        texts, required = docstrings(cls), required_fields(cls)
        for name, hint in field_types(cls).items():
            inner, default = dataclass_of(hint), default_of(cls, name)
            if inner is not None and not is_choice(inner):
                continue  # a group
            what = wanted(hint)
            if inner is not None:
                what = f"a class: {', '.join(sorted(concrete_classes(inner)))}"
                what = f"NAME: {what}" if is_mapping_of_choices(hint) else what
            if name not in required:
                what += f"; default: {in_yaml(to_tree(default))}"
            text = f"{texts.get(name, '')} ({what})".replace("%", "%%")
            group.add_argument(f"--{f'{key}.{name}'.strip('.')}", metavar="VALUE", help=text)
    return parser.format_help()


def docstrings(cls: type) -> dict[str, str]:
    """The texts under the fields of a dataclass and its bases."""
    texts: dict[str, str] = {}
    for base in filter(is_dataclass, reversed(cls.__mro__)):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for field, text in pairwise(tree.body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                texts[ast.unparse(field.target)] = " ".join(ast.literal_eval(text.value).split())
    return texts
