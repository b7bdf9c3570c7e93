"""The classes that a recipe may choose from, and the fields of its dataclasses."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from inspect import isabstract
from typing import Any, get_args, get_origin, get_type_hints

from vlds.backbones.base import Backbone
from vlds.heads.base import Head
from vlds.methods.base import Method
from vlds.models.kind import ModelKind
from vlds.tasks.base import Task
from vlds.vision.base import VisionEncoder

CHOICES = (ModelKind, Backbone, VisionEncoder, Method, Task, Head)
"""A field of one of these types, or a mapping of names to them, chooses a class."""


def subclasses(base: type) -> Iterator[type]:
    """All subclasses that are imported, at any depth."""
    children: list[type] = base.__subclasses__()
    for child in children:
        yield child
        yield from subclasses(child)


def concrete_classes(base: type) -> dict[str, type]:
    """The classes that can be chosen for `base`, by name."""
    return {cls.__name__: cls for cls in subclasses(base) if not isabstract(cls)}


def class_named(path: str, base: type) -> type | None:
    """The class of a `class_path`; None if it is not a class of `base`. Imports the module of a
    dotted path.

    Errors: ImportError.
    """
    module, _, name = path.rpartition(".")
    if not module:
        return concrete_classes(base).get(name)
    cls = getattr(importlib.import_module(module), name, None)
    return cls if isinstance(cls, type) and issubclass(cls, base) else None


def class_if_there(path: str, base: type) -> type | None:
    """The class of a `class_path`; None if there is none, which `check_tree` reports."""
    with suppress(ImportError):
        return class_named(path, base)
    return None


def field_types(cls: type) -> dict[str, Any]:
    """Name -> type of the fields that a recipe can set, with their limits."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in fields(cls) if field.init}


def required_fields(cls: type) -> list[str]:
    """Fields without a default."""
    return [
        field.name
        for field in fields(cls)
        if field.init and field.default is MISSING and field.default_factory is MISSING
    ]


def dataclass_of(hint: Any) -> type | None:
    """The dataclass in a field's type: T of `T`, `T | None` or `dict[str, T]`."""
    if is_dataclass(hint) and isinstance(hint, type):
        return hint
    return next((cls for part in get_args(hint) if (cls := dataclass_of(part))), None)


def is_mapping_of_choices(hint: Any) -> bool:
    """True for `dict[str, T]`."""
    return get_origin(hint) is dict


def is_choice(cls: type) -> bool:
    """True if a recipe chooses a class in place of `cls`."""
    return issubclass(cls, CHOICES)
