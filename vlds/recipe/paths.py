"""Finds the files that a saved recipe names from any working directory.

A recipe's relative paths start in the working directory. A run writes that folder into the recipes
that it saves, as `started_in`. If the run is opened from another folder, its paths are looked up
next to the run, if both were moved together; then where the run was started; then in the working
directory.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from vlds.recipe.check import CHOICES, subclasses
from vlds.runtime.checks import guess
from vlds.runtime.process import find, shipped
from vlds.runtime.yaml_file import read_yaml

# Recipes that build on another one: `base: FILE`, relative to the recipe's own folder.
#
# Mappings are merged key by key, and so are the init_args of the same class; everything else is
# replaced. `methods` is replaced as a whole, so that one recipe lists all that is tuned. A task
# with the value null is left out.


BASE, TASKS = "base", "tasks"
WHOLE = ("methods",)
"""Keys of a recipe that are not merged."""


def read_tree(file: Path) -> dict[str, Any]:
    """Read one recipe file, without its base.

    Errors: ValueError if it is not a mapping of keys.
    """
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
    return tree


def read_merged(file: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a recipe and merge it into its base.

    Errors: ValueError for a base that is missing, or that leads back to the recipe.
    """
    if file.resolve() in seen:
        chain = " -> ".join(path.name for path in (*seen, file))
        raise ValueError(f"base: {chain} is a circle; a recipe cannot build on itself")
    tree = located(read_tree(file), file)
    return on_base(tree, file.parent, (*seen, file.resolve()))


def on_base(tree: dict[str, Any], folder: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Merge a recipe's keys into its base, if it has one; `folder`: where it is looked up first.

    Errors: ValueError for a base that is missing, or that leads back to the recipe; for a task to
    leave out that the base does not have.
    """
    rest = {key: value for key, value in tree.items() if key != BASE}
    name = tree.get(BASE)
    if name is None:
        return rest
    try:
        relative = folder / str(name)
        base = relative if relative.exists() else find(str(name))
    except OSError as error:
        raise ValueError(f"base: got {name!r}; give a recipe's file: {error.strerror}") from None
    return changed(read_merged(base, seen), rest)


def changed(recipe: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A recipe's keys with `changes` merged in, without the tasks that these leave out.

    Errors: ValueError for a task to leave out that the recipe does not have.
    """
    result = merged(recipe, changes, WHOLE)
    if isinstance(tasks := result.get(TASKS), dict):
        known = recipe.get(TASKS) or {}
        for name, task in tasks.items():
            if task is None and name not in known:
                raise ValueError(
                    f"tasks.{name}: null leaves out a task of the base, and that has none of this "
                    f"name; {guess(name, known)}it has {', '.join(known) or 'no tasks'}"
                )
        result[TASKS] = {name: task for name, task in tasks.items() if task is not None}
    return result


def merged(base: dict[str, Any], changes: dict[str, Any], whole: tuple[str, ...]) -> dict[str, Any]:
    """`base` with `changes` merged in; keys in `whole` are replaced."""
    result = dict(base)
    for key, value in changes.items():
        old = base.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and key not in whole:
            same_class = value.get("class_path") in (None, old.get("class_path"))
            value = merged(old, value, ()) if same_class else value
        result[key] = value
    return result


STARTED_IN = "started_in"
OUTPUT = "output"
DATASETS = ("train", "evaluate", "test")
FILES = ("path", "config", "tokenizer", "processor", "weights", "projector_weights",
         "fusion_weights", "importance", "answers", "choices", "classes", "data", "cache",
         "deepspeed", *DATASETS)  # fmt: skip
"""Keys whose values are files and folders, at any depth; some values may be hub names."""
LOCAL_FILES = ("config", "weights", "projector_weights", "fusion_weights", "importance",
               "deepspeed")  # fmt: skip
"""Of these, the keys whose values are files of this machine, or of vlds."""
RUNS = "runs"
"""Key whose value maps names to folders."""


def with_start(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree of a recipe with `started_in`, if it has relative paths."""
    names = [tree.get(OUTPUT), *(name for _, name in file_names(tree))]
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
    # RUN/recipe.yaml or RUN/artifact/recipe.yaml
    now = max((here, here.parent), key=lambda folder: common_end(folder, then))
    same = common_end(now, then)
    if same == 0 or now == then:
        return Places(Path(start), None)
    before, after = then.parts[:-same], now.parts[:-same]
    return Places(Path(start), (Path(*before), Path(*after)))


def common_end(one: Path, other: Path) -> int:
    """The number of last parts that two paths share."""
    pairs = zip(reversed(one.parts), reversed(other.parts), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def located(tree: dict[str, Any], file: Path) -> dict[str, Any]:
    """The tree of the recipe in `file`, without `started_in`, and with paths that are valid in the
    current working directory.

    Errors: ValueError if `started_in` is not an absolute path.
    """
    places = places_of(tree, file)
    rest = {key: value for key, value in tree.items() if key != STARTED_IN}
    resolved: dict[str, Any] = _renamed(rest, lambda name, is_set: _find(name, places, is_set))
    if STARTED_IN in tree and isinstance(output := rest.get(OUTPUT), str):
        resolved[OUTPUT] = _from_here(places.candidates(output)[0], output)
    return resolved


def left_behind(tree: dict[str, Any], saved: Path) -> str | None:
    """The message if files are missing because a run is resumed from another folder than it was
    started in; else None. `saved`: the run's saved recipe.

    Errors: ValueError if that cannot be read.
    """
    if not saved.is_file():
        return None
    start = places_of(read_yaml(saved), saved).start
    for _, name in file_names(tree):
        if is_relative(name) and not Path(name).exists() and (start / name).exists():
            return (
                f"no {name} here; the run was started in {start}: resume it there, or with its "
                f"saved recipe: vlds train {saved} --resume"
            )
    return None


def file_names(tree: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Key and name of each file and folder in a recipe's tree, except its output. Keys are as on
    the command line, below `place`."""
    for key, value in tree.items() if isinstance(tree, dict) else ():
        whole = place if key == "init_args" else f"{place}.{key}".strip(".")
        if are_folders(key, value):
            yield from ((f"{whole}.{name}", folder) for name, folder in value.items())
        elif isinstance(value, dict):
            yield from file_names(value, whole)
        elif key in FILES:
            names = value if isinstance(value, list) and key in DATASETS else [value]
            yield from ((whole, name) for name in names if isinstance(name, str))


def check_files(tree: dict[str, Any]) -> None:
    """Look for the files that a recipe names, before any long work.

    Errors: ValueError that names the key and the file.
    """
    for key, name in file_names(tree):
        if key.rpartition(".")[2] not in LOCAL_FILES:
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


def data_sets(tree: dict[str, Any]) -> list[str]:
    """The data sets that a recipe names."""
    return [name for key, name in file_names(tree) if key.rpartition(".")[2] in (*DATASETS, "data")]


def are_folders(key: str, value: Any) -> bool:
    """True for a mapping of names to folders; a task that is called so is none."""
    return (
        key == RUNS
        and isinstance(value, dict)
        and all(isinstance(folder, str) for folder in value.values())
    )


def is_relative(name: str) -> bool:
    """True if a name depends on the working directory: not an absolute path, URL or command."""
    return bool(name) and name[0] not in "/~<" and ":" not in name.partition("/")[0]


def moved(tree: Any, folders: Mapping[str, str]) -> Any:
    """The tree of a recipe whose files and folders below some folders are read from others."""

    def move(name: Any, is_dataset: bool) -> Any:
        for old, new in folders.items():
            if isinstance(name, str) and is_below(name, old):
                return new + name[len(old) :]
        return name

    return _renamed(tree, move)


def is_below(name: str, folder: str) -> bool:
    """True for a folder itself, and for what lies in it."""
    return name == folder or name.startswith(f"{folder}/")


def _renamed(tree: Any, rename: Callable[[Any, bool], Any]) -> Any:
    """The tree with other names of files, which `rename` gets with True for data sets."""
    if not isinstance(tree, dict):
        return tree
    renamed: dict[str, Any] = {}
    for key, value in tree.items():
        if key in DATASETS and isinstance(value, list):
            renamed[key] = [rename(name, True) for name in value]
        elif key in FILES and isinstance(value, str):
            renamed[key] = rename(value, False)
        elif are_folders(key, value):
            renamed[key] = {n: rename(run, False) for n, run in value.items()}
        else:
            renamed[key] = _renamed(value, rename)
    return renamed


def _find(name: Any, places: Places, dataset: bool) -> Any:
    """The path of a file from here. A name that is not found stays, since it may be a hub name or a
    file of vlds; a missing data set is named where it was."""
    if not isinstance(name, str) or not (is_relative(name) or name.startswith("/")):
        return name
    for path in places.candidates(name):
        # A pattern of shards, like part-{000..009}.tar, is not a file itself.
        if path.exists() or ("{" in path.name and path.parent.is_dir()):
            return _from_here(path, name)
    return _from_here(places.start / name, name) if dataset else name


def _from_here(path: Path, name: str) -> str:
    """The path of a file; the name itself if it means the same file here."""
    return name if path == Path.cwd() / name else str(path)


# Decides which classes a saved recipe may name.
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
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def check_classes(tree: Any, source: str) -> None:
    """Check every class that a saved recipe names before anything is imported.

    Errors: ValueError that names the class and `source`, the origin of the recipe.
    """
    known = {cls.__name__ for base in CHOICES for cls in subclasses(base)}
    for name in named_classes(tree):
        module, dot, cls = name.rpartition(".")
        if (not dot and cls in known) or is_ours(module, cls) or is_trusted(module):
            continue
        cure = (
            f"if you trust the code in {module}, add {OPTION} {module}"
            if dot
            else f"known are {', '.join(sorted(known))}"
        )
        raise ValueError(
            f"{source}: class_path {name!r}: a saved recipe may name only classes of vlds; {cure}"
        )


def is_ours(module: str, name: str) -> bool:
    """True for a task, method, backbone or encoder that is imported already."""
    cls = vars(sys.modules[module]).get(name) if module in sys.modules else None
    return isinstance(cls, type) and issubclass(cls, CHOICES)


def is_trusted(module: str) -> bool:
    """True for a trusted module or a module in a trusted package."""
    parts = module.split(".")
    return any(".".join(parts[: n + 1]) in _trusted for n in range(len(parts)))


def named_classes(tree: Any) -> Iterator[str]:
    """Every class_path in a recipe."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key == "class_path":
                yield str(value)
            else:
                yield from named_classes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from named_classes(value)


def leave_working_directory() -> None:
    """Remove the working directory from Python's path, so that nothing there is imported."""
    here = os.getcwd()
    checkout = str(Path(os.path.abspath(__file__)).parents[2])
    if here != checkout:
        sys.path[:] = [place for place in sys.path if os.path.abspath(place or here) != here]
