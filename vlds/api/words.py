"""From Python's values to the words of a command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TypeAlias

import numpy as np
import yaml

from vlds.evaluation.sources import path_of

Changes: TypeAlias = Mapping[str, object]
"""Dotted keys of a recipe -> values."""


def recipe_words(
    recipe: str | PathLike[str] | Mapping[str, object], changes: Changes | None, scratch: Path
) -> list[str]:
    """A recipe, given as a file or its content, and changes to it as words of a command line; the
    content is written into the folder `scratch`.

    Errors: ValueError for anything else.
    """
    if isinstance(recipe, Mapping):
        file = scratch / "recipe.yaml"
        tree = json.loads(json_text("recipe", dict(recipe)))
        file.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    else:
        file = path_of("recipe", recipe)
    return [str(file), *words_of(changes)]


def words_of(changes: Changes | None) -> list[str]:
    """Changes as words of a command line.

    Errors: ValueError for anything but a mapping of keys to values that a recipe can hold.
    """
    if changes is None:
        return []
    if not isinstance(changes, Mapping) or not all(isinstance(key, str) for key in changes):
        raise ValueError(
            f"changes: got {changes!r:.100}; give a dict such as {{'output': 'runs/a'}}"
        )
    words = []
    for key, value in changes.items():
        plain = json_text(f"changes: {key}", value)
        # Texts go without JSON's quotes.
        words += [f"--{key}", str(value) if isinstance(value, str | Path) else plain]
    return words


def json_text(argument: str, value: object) -> str:
    """Plain values as JSON, paths among them as texts, and numpy's numbers as Python's.

    Errors: ValueError that names the argument, for any other object.
    """

    def plain(part: object) -> object:
        if isinstance(part, PathLike):
            return str(part)
        if isinstance(part, np.generic):
            return part.item()
        raise ValueError(f"got {type(part).__name__}")

    # JSON is YAML too, so the recipe's parser reads it.
    try:
        return json.dumps(value, default=plain)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{argument}: {error}; give numbers, texts, lists, dicts or paths"
        ) from None


def option_words(options: Mapping[str, object]) -> list[str]:
    """Keyword arguments as options of a command: image_size=224 is --image-size 224, True is the
    option alone, and a list is several words. None and False leave the option out.

    Errors: ValueError for a value that is not a text, number, path or list of them.
    """
    words: list[str] = []
    for name, value in options.items():
        parts = value if isinstance(value, list | tuple) else [value]
        if odd := [part for part in parts if not isinstance(part, str | int | float | Path | None)]:
            raise ValueError(
                f"{name}: got {type(odd[0]).__name__}; give a text, number, path or a list of them"
            )
        if value is None or value is False:
            continue
        words.append(f"--{name.rstrip('_').replace('_', '-')}")
        words += [] if value is True else map(str, parts)
    return words
