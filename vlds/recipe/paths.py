"""Finds the files that a saved recipe names from any working directory.

A recipe's relative paths start in the working directory. A run writes that folder into the recipes
that it saves, as `started_in`. If the run is opened from another folder, its paths are looked up
next to the run, if both were moved together; then where the run was started; then in the working
directory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from vlds.runtime.resources import find, shipped
from vlds.runtime.yaml_file import read_yaml

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
