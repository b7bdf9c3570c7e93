"""What a recipe's file brings with it: the recipe that it builds on, the files that it names, and
the classes that it may name.

A recipe's relative paths start in the working directory. A run writes that folder into the recipes
that it saves, as `started_in`. If the run is opened from another folder, its paths are looked up
next to the run, if both were moved together; then where the run was started; then in the working
directory.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, is_dataclass
from itertools import takewhile
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin

from vlds.recipe.choices import (
    ARGUMENTS,
    CLASS,
    class_if_there,
    concrete_classes,
    dataclass_of,
    field_types,
    is_choice,
    is_mapping_of_choices,
    subclasses,
    takes_null,
)
from vlds.runtime.checks import Choice, PathMark, guess
from vlds.runtime.process import find, shipped
from vlds.runtime.terminal import shell_command
from vlds.runtime.yaml_file import read_yaml

BASE, TASKS = "base", "tasks"
WHOLE = ("methods",)
"""Keys of a recipe that replace those of its base as a whole, so that one recipe lists all that is
tuned. Other mappings are merged key by key, and so are the init_args of the same class."""


def read_merged(file: Path, options: type, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read the file of a dataclass `options`, such as Recipe, and merge it into its base.

    Errors: ValueError if it is not a mapping of keys; for a base that is missing, or that leads
    back to the recipe.
    """
    if file.resolve() in seen:
        chain = " -> ".join(path.name for path in (*seen, file))
        raise ValueError(f"base: {chain} is a circle; a recipe cannot build on itself")
    tree = read_yaml(file)
    if tree is None:
        raise ValueError(
            f"{file}: the recipe is empty; start from a recipe of vlds, such as recipes/demo.yaml"
        )
    if not isinstance(tree, dict):
        content = "a list" if isinstance(tree, list) else f"only {tree!r:.40}"
        raise ValueError(
            f"{file}: a recipe has keys and values, like `output: runs/mine`; this file holds "
            f"{content}"
        )
    tree = located(tree, file, options)
    return on_base(tree, file.parent, options, (*seen, file.resolve()))


def on_base(
    tree: dict[str, Any], folder: Path, options: type, seen: tuple[Path, ...] = ()
) -> dict[str, Any]:
    """Merge a recipe's keys into its base, if it has one; `folder`: where it is looked up first.

    Errors: ValueError for a base that is missing, or that leads back to the recipe; for a task to
    leave out that the base does not have.
    """
    rest = {key: value for key, value in tree.items() if key != BASE}
    name = tree.get(BASE)
    if name is None:
        return rest
    # Beside the recipe first, then in the working directory or among those of vlds.
    try:
        relative = folder / str(name)
        base = relative if relative.exists() else find(str(name))
    except OSError as error:
        raise ValueError(f"base: got {name!r}; give a recipe's file: {error.strerror}") from None
    return changed(read_merged(base, options, seen), rest, options)


def changed(recipe: dict[str, Any], changes: dict[str, Any], options: type) -> dict[str, Any]:
    """A recipe's keys with `changes` merged in, without the tasks and values that these set to
    null. `options`: the dataclass that it describes.

    Errors: ValueError for a task to leave out that the recipe does not have.
    """
    result = merged(*unset(recipe, changes, options), WHOLE)
    if isinstance(tasks := result.get(TASKS), dict):
        known = recipe.get(TASKS) or {}
        for name, task in tasks.items():
            if not isinstance(name, str):
                raise ValueError(
                    f"tasks: got the name {name!r}; a name is text: write it in quotes (YAML "
                    "reads yes, no, on and off as true and false)"
                )
            if task is None and name not in known:
                raise ValueError(
                    f"tasks.{name}: null leaves out a task of the base, and that has none of this "
                    f"name; {guess(name, known)}it has {', '.join(known) or 'no tasks'}"
                )
        result[TASKS] = {name: task for name, task in tasks.items() if task is not None}
    return result


INSTEAD = {"steps": "epochs", "epochs": "steps"}
"""Key -> the key that says the same otherwise: what sets one takes the other away."""


def merged(base: dict[str, Any], changes: dict[str, Any], whole: tuple[str, ...]) -> dict[str, Any]:
    """`base` with `changes` merged in; keys in `whole` are replaced."""
    result = dict(base)
    for key, value in changes.items():
        if value is not None and (other := INSTEAD.get(key, "")) not in changes:
            result.pop(other, None)
        old = base.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and key not in whole:
            # The arguments of one class mean nothing to another.
            same_class = value.get(CLASS) in (None, old.get(CLASS))
            value = merged(old, value, ()) if same_class else value
        result[key] = value
    return result


def undotted(tree: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """The keys of a file; `errors.max_in_a_row: 3` is `errors: {max_in_a_row: 3}`."""
    if not any("." in name for name in tree if isinstance(name, str)):
        return tree
    result: dict[Any, Any] = {}
    for name, value in tree.items():
        top, *below = name.split(".") if isinstance(name, str) else [name]
        for part in reversed(below):
            value = {part: value}
        result = merged(result, {top: value}, ())
    return result


def unset(base: Any, changes: Any, cls: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keys of a dataclass in a recipe's base and in what changes it, both without those that
    `changes` sets to null where null is not a value: the default replaces the base's value."""
    base, changes, types = dict(undotted(base)), dict(undotted(changes)), field_types(cls)
    for name in base.keys() & changes.keys() & types.keys() - {*WHOLE}:
        old, new, hint = base[name], changes[name], types[name]
        inner = dataclass_of(hint)
        if new is None and old is not None and not takes_null(hint):
            del base[name], changes[name]
        elif inner is None or not isinstance(old, dict) or not isinstance(new, dict):
            continue
        elif is_mapping_of_choices(hint):
            base[name], changes[name] = dict(old), dict(new)
            for entry in old.keys() & new.keys():
                pair = _unset_chosen(old[entry], new[entry], inner)
                base[name][entry], changes[name][entry] = pair
        elif is_choice(inner):
            base[name], changes[name] = _unset_chosen(old, new, inner)
        else:
            base[name], changes[name] = unset(old, new, inner)
    return base, changes


def _unset_chosen(old: Any, new: Any, cls: type) -> tuple[Any, Any]:
    """As `unset`, of a choice: the arguments of one class mean nothing to another."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return old, new
    chosen = class_if_there(str(old.get(CLASS)), cls)
    theirs, ours = old.get(ARGUMENTS), new.get(ARGUMENTS)
    is_same = chosen is not None and new.get(CLASS) in (None, old.get(CLASS))
    if not is_same or not isinstance(theirs, dict) or not isinstance(ours, dict):
        return old, new
    assert chosen is not None
    theirs, ours = unset(theirs, ours, chosen)
    return {**old, ARGUMENTS: theirs}, {**new, ARGUMENTS: ours}


# The files and folders in a recipe, which the types of its fields tell.


def renamed(
    tree: Any, hint: Any, rename: Callable[[str, str, PathMark], object], key: str = ""
) -> Any:
    """A value of the type `hint` in a recipe's tree, with other names of files and folders: those
    are the texts whose types hold a `PathMark`. The run folder, `output`, is not among them.

    `rename` makes a new name from the dotted key on the command line, the name and its mark.
    """
    # The first branch of a union that fits the value decides, as it does for the parser.
    is_union = get_origin(hint) in (Union, UnionType)
    for branch in get_args(hint) if is_union else (hint,):
        origin, inner = get_origin(branch), get_args(branch)
        if isinstance(tree, str):
            for mark in getattr(branch, "__metadata__", ()):
                if isinstance(mark, PathMark):
                    return rename(key, tree, mark)
        elif isinstance(tree, list) and origin in (list, tuple):
            return [renamed(entry, inner[0], rename, key) for entry in tree]
        elif isinstance(tree, Mapping) and origin is dict:
            return {n: renamed(v, inner[1], rename, f"{key}.{n}") for n, v in tree.items()}
        elif isinstance(tree, Mapping) and isinstance(branch, type) and is_dataclass(branch):
            if not is_choice(branch):
                return _renamed_fields(tree, field_types(branch), rename, key)
            chosen = class_if_there(str(tree.get(CLASS)), branch)
            # Keys that change a base need not repeat its class; then all classes' fields count.
            classes = concrete_classes(branch).values() if chosen is None else [chosen]
            types = {name: kind for cls in classes for name, kind in field_types(cls).items()}
            arguments = _renamed_fields(tree.get(ARGUMENTS), types, rename, key)
            return {**tree, ARGUMENTS: arguments} if ARGUMENTS in tree else tree
    return tree


def _renamed_fields(
    tree: Any, types: Mapping[str, Any], rename: Callable[[str, str, PathMark], object], key: str
) -> Any:
    if not isinstance(tree, Mapping):
        return tree
    return {
        name: renamed(value, types.get(name), rename, f"{key}.{name}".strip("."))
        for name, value in tree.items()
    }


NO_FOLDER = re.compile(r"://|^pipe:|\{|\.tar$")
"""Marks data that are not a folder: see `is_pattern` of shards."""


class NamedFile(NamedTuple):
    """A file or folder in a recipe."""

    key: str
    """Dotted, as on the command line."""
    name: str
    mark: PathMark


def file_names(tree: Any, options: type) -> list[NamedFile]:
    """The files and folders that the tree of a dataclass `options` names, except its output."""
    files: list[NamedFile] = []
    renamed(tree, options, lambda *file: files.append(NamedFile(*file)))
    return files


def inputs_of(tree: Any, options: type) -> list[str]:
    """What a recipe reads: files, folders, hub names and URLs."""
    return [file.name for file in file_names(tree, options) if file.mark.kind != "written"]


def only_read(tree: Any, options: type) -> Any:
    """The tree of a recipe that may be a stranger's: where files are written is left open."""
    return renamed(tree, options, lambda _, name, mark: None if mark.kind == "written" else name)


def check_files(tree: Any, options: type) -> None:
    """Look for the files that a recipe names, before any long work.

    Errors: ValueError that names the key and the file.
    """
    for key, name, mark in file_names(tree, options):
        if mark.kind != "file":
            continue
        try:
            file = find(name)
        except ValueError as error:
            stems = {Path(file).stem: file for file in shipped("ds_configs")}
            ours = stems.get(Path(name).stem) if key.endswith("deepspeed") else None
            cure = f"no such file: {name}; did you mean '{ours}'?" if ours else error
            raise ValueError(f"{key}: {cure}") from None
        if file.is_dir():
            raise ValueError(f"{key}: {name} is a folder; name a file")


def check_data(tree: Any, options: type) -> None:
    """Look for the folders of data that a recipe trains and is evaluated on.

    Errors: ValueError that names the key and the folder.
    """
    for key, name, mark in file_names(tree, options):
        # Test data may come later; URLs and patterns do not name folders.
        is_folder = mark.kind == "data" and not key.endswith(".test") and not NO_FOLDER.search(name)
        if is_folder and not Path(name).expanduser().exists():
            raise ValueError(
                f"{key}: data set {name}: no such folder; check the path, or prepare it with "
                "`vlds data`"
            )


def moved(tree: Any, folders: Mapping[str, str], options: type) -> Any:
    """The tree of a recipe whose files and folders below some folders are read from others."""

    def move(key: str, name: str, mark: PathMark) -> str:
        # With the separator: runs/ab does not lie in runs/a.
        below = (old for old in folders if is_below(name, old))
        old = next(below, None)
        return name if old is None else folders[old] + name[len(old) :]

    return renamed(tree, options, move)


def is_below(name: str, folder: str) -> bool:
    """True for a folder itself, and for what lies in it."""
    return name == folder or name.startswith(f"{folder}/")


def is_relative(name: str) -> bool:
    """True if a name depends on the working directory: not an absolute path, URL or command."""
    return bool(name) and name[0] not in "/~<" and ":" not in name.partition("/")[0]


# Where these files are when a run is opened from another folder.

STARTED_IN = "started_in"
OUTPUT = "output"


def with_start(tree: dict[str, Any], options: type) -> dict[str, Any]:
    """The tree of a recipe with `started_in`, if it has relative paths."""
    names = [tree.get(OUTPUT), *(file.name for file in file_names(tree, options))]
    if not any(isinstance(name, str) and is_relative(name) for name in names):
        return tree
    return {**tree, STARTED_IN: os.getcwd()}


@dataclass(frozen=True)
class Places:
    """Where the files of a saved recipe may be now."""

    start: Path
    """Folder in which the run was started: its relative paths start there."""
    moved: tuple[Path, Path] | None
    """Old and new path of the innermost folder that was moved with the run; None: not moved."""

    def candidates(self, name: str) -> list[Path]:
        """Paths where a file of the recipe may be, the likeliest first."""
        then = self.start / name  # the name alone where that is absolute
        paths = [then, Path.cwd() / name]
        if self.moved is not None and then.is_relative_to(self.moved[0]):
            moved = self.moved[1] / then.relative_to(self.moved[0])
            # A relative path means the copy beside the run; an absolute one means that very file.
            paths.insert(0 if is_relative(name) else 1, moved)
        return list(dict.fromkeys(paths))


def places_of(tree: dict[str, Any], file: Path) -> Places:
    """Where the files of the recipe in `file` may be.

    Errors: ValueError if `started_in` is not an absolute path.
    """
    start = tree.get(STARTED_IN, os.getcwd())
    if not isinstance(start, str) or not Path(start).is_absolute():
        raise ValueError(f"{file}: {STARTED_IN}: got {start!r:.100}; give an absolute path")
    output = tree.get(OUTPUT)
    if not isinstance(output, str):
        return Places(Path(start), None)
    then, here = Path(start, output), file.resolve().parent

    def common_end(folder: Path) -> int:
        """The number of last parts that a folder shares with the run's old path."""
        pairs = zip(reversed(folder.parts), reversed(then.parts), strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    # RUN/recipe.yaml or RUN/artifact/recipe.yaml. The run was at /a/proj/runs/x and is at
    # /b/proj/runs/x: "proj/runs/x" is the same, so /a was moved to /b.
    now = max((here, here.parent), key=common_end)
    same = common_end(now)
    if same == 0 or now == then:
        return Places(Path(start), None)
    before, after = then.parts[:-same], now.parts[:-same]
    return Places(Path(start), (Path(*before), Path(*after)))


def located(tree: dict[str, Any], file: Path, options: type) -> dict[str, Any]:
    """The tree of the recipe in `file`, without `started_in`, and with paths that are valid in the
    current working directory.

    Errors: ValueError if `started_in` is not an absolute path.
    """
    places = places_of(tree, file)

    def from_here(path: Path, name: str) -> str:
        # The recipe's own words stay where they mean the same file.
        return name if path == Path.cwd() / name else str(path)

    def find_again(key: str, name: str, mark: PathMark) -> str:
        if not is_relative(name) and not name.startswith("/"):
            return name
        for path in places.candidates(name):
            # A pattern of shards, like part-{000..009}.tar, is not a file itself.
            if path.exists() or ("{" in path.name and path.parent.is_dir()):
                return from_here(path, name)
        # A missing data set is named where it was; other names may be the hub's, or of vlds.
        if mark.kind == "data":
            return from_here(places.start / name, name)
        return shipped_or_given(key, name, mark)

    rest = {key: value for key, value in tree.items() if key != STARTED_IN}
    resolved: dict[str, Any] = renamed(rest, options, find_again)
    if STARTED_IN in tree and isinstance(output := rest.get(OUTPUT), str):
        resolved[OUTPUT] = from_here(places.candidates(output)[0], output)
    return resolved


def shipped_or_given(key: str, name: str, mark: PathMark) -> str:
    """A name of a recipe, or the path of the file or folder of vlds that it means."""
    if mark.kind in ("any", "file") and name.startswith("recipes/"):
        with suppress(ValueError, OSError):  # what reads it says that it is missing
            return str(find(name))
    return name


def left_behind(tree: dict[str, Any], saved: Path, options: type) -> str | None:
    """The message if files are missing because a run is resumed from another folder than it was
    started in; else None. `saved`: the run's saved recipe.

    Errors: ValueError if that cannot be read.
    """
    if not saved.is_file():
        return None
    start = places_of(read_yaml(saved), saved).start
    for _, name, _ in file_names(tree, options):
        if is_relative(name) and not Path(name).exists() and (start / name).exists():
            return (
                f"no {name} here; the run was started in {start}: resume it there, or with its "
                f"saved recipe: {shell_command('vlds', 'train', saved, '--resume')}"
            )
    return None


# Which classes a saved recipe may name.
#
# A recipe names its tasks, methods, backbones and encoders by class, and a dotted name is imported,
# which runs the code of that module. A user's own recipe may do that. But a run or an artifact may
# come from someone else, so it may name only classes of vlds, classes that the running program has
# imported already, and classes of modules that the user names with --trust.

OPTION = "--trust"

_trusted: set[str] = set()


def take_trust(arguments: Sequence[str]) -> list[str]:
    """Trust the modules of `--trust MODULE`; the command line without these words.

    Errors: ValueError if the module is missing.
    """
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        option, equals, module = word.partition("=")
        if option != OPTION:
            rest.append(word)
            continue
        module = module if equals else next(words, "")
        if not all(part.isidentifier() for part in module.split(".")):
            raise ValueError(f"{OPTION}: got {module!r}; give the name of a Python module")
        trust(module)
    return rest


def trust(module: str) -> None:
    """Let saved recipes name the classes of a module or package, which may be in the working
    directory."""
    _trusted.add(module)
    # Last: what else lies in the working directory must not take the place of an installed module.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def is_trusted(module: str) -> bool:
    """True for a trusted module or a module in a trusted package."""
    parts = module.split(".")
    return any(".".join(parts[: n + 1]) in _trusted for n in range(len(parts)))


def check_classes(tree: Any, source: str) -> None:
    """Check every class that a saved recipe names before anything is imported.

    Errors: ValueError that names the class and `source`, the origin of the recipe.
    """
    known = {cls.__name__ for cls in subclasses(Choice)}
    for path in _named_classes(tree):
        module, dot, name = path.rpartition(".")
        # By vars, not getattr: a module may have a __getattr__ that runs its code.
        imported = vars(sys.modules[module]).get(name) if module in sys.modules else None
        is_ours = isinstance(imported, type) and issubclass(imported, Choice)
        if (not dot and name in known) or is_ours or is_trusted(module):
            continue
        cure = (
            f"if you trust the code in {module}, add {OPTION} {module}"
            if dot
            else f"known are {', '.join(sorted(known))}"
        )
        raise ValueError(
            f"{source}: class_path {path!r}: a saved recipe may name only classes of vlds; {cure}"
        )


def _named_classes(tree: Any) -> Iterator[str]:
    """Every class_path in a recipe, wherever it stands: the tree may be malformed."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key == CLASS:
                yield str(value)
            else:
                yield from _named_classes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _named_classes(value)


def leave_working_directory() -> None:
    """Remove the working directory from Python's path, so that nothing there is imported."""
    # The checkout of vlds itself stays: without an installation, vlds is imported from there.
    here = os.getcwd()
    checkout = str(Path(os.path.abspath(__file__)).parents[2])
    if here != checkout:
        sys.path[:] = [place for place in sys.path if os.path.abspath(place or here) != here]
