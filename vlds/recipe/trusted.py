"""Decides which classes a saved recipe may name.

A recipe names its tasks, methods, backbones and encoders by class, and a dotted name is imported,
which runs the code of that module. A user's own recipe may do that. But a run or an artifact may
come from someone else, so it may name only classes of vlds, classes that the running program has
imported already, and classes of modules that the user names with --trust.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlds.recipe.choices import CHOICES, subclasses

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
