"""Recipes that build on another one: `base: FILE`, relative to the recipe's own folder.

Mappings are merged key by key, and so are the init_args of the same class; everything else is
replaced. `methods` is replaced as a whole, so that one recipe lists all that is tuned. A task with
the value null is left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlds.recipe.paths import located
from vlds.runtime.near_names import guess
from vlds.runtime.resources import find
from vlds.runtime.yaml_file import read_yaml

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
