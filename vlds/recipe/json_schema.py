"""JSON Schema of the files that describe runs, from the dataclasses that parse them: editors
complete keys and classes by it, and underline what vlds would refuse.

A schema describes one file, which may be part of a recipe: another file may bring what is missing.
So it says which keys and values can stand there, not which must.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from vlds.recipe.build import default_of, required_fields, to_tree
from vlds.recipe.choices import (
    ARGUMENTS,
    CLASS,
    concrete_classes,
    dataclass_of,
    field_types,
    is_choice,
    is_mapping_of_choices,
)
from vlds.recipe.parse import docstrings
from vlds.recipe.paths import BASE, STARTED_IN, TASKS
from vlds.runtime.checks import LARGEST_SETTING, Limits

Schema = dict[str, Any]
DIALECT = "http://json-schema.org/draft-07/schema#"
"""The newest that all editors' servers read."""
DOTTED = {r"^\w+(\.\w+)+$": True}
"""`optimizer.betas: ...` is `optimizer: {betas: ...}`, which vlds checks."""
NUMBER = r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$"
"""Texts that vlds reads as numbers: to YAML 1.1, which Python reads, 1e-3 is a text."""
TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", NoneType: "null"}


def json_schema(options: type, version: str) -> Schema:
    """The schema of a file that describes a dataclass `options`, such as Recipe."""
    writer = SchemaWriter()
    schema = writer.fields_of(options)
    schema["properties"] |= {
        BASE: {"type": "string", "description": "A recipe to start from; all keys merge."},
        STARTED_IN: {"type": "string", "description": "The working directory of a saved run."},
    }
    # Only a base can have chosen the class whose arguments a file changes.
    chosen = {
        name: writer.with_class(hint)
        for name, hint in field_types(options).items()
        if (inner := dataclass_of(hint)) is not None and is_choice(inner)
    }
    if chosen:
        schema |= {"if": {"not": {"required": [BASE]}}, "then": {"properties": chosen}}
    name = options.__name__
    head = {
        "$schema": DIALECT,
        "$id": f"urn:vlds:{version}:{name.lower()}",
        "title": f"{name} of vlds {version}",
    }
    return {**head, **schema, "definitions": dict(sorted(writer.definitions.items()))}


class SchemaWriter:
    """Writes the schemas of dataclasses, each once, into `definitions`."""

    def __init__(self) -> None:
        self.definitions: dict[str, Schema] = {}

    def fields_of(self, cls: type) -> Schema:
        """The mapping of a dataclass's fields."""
        texts, required = docstrings(cls), required_fields(cls)
        properties = {}
        for name, hint in field_types(cls).items():
            schema = self.field(name, hint)
            if name not in required:
                # Null brings the default back, in place of a base's value.
                schema = {"anyOf": [schema, {"type": "null"}]}
                schema["default"] = to_tree(default_of(cls, name))
            properties[name] = {"description": texts.get(name, ""), **schema}
        about = " ".join((cls.__doc__ or "").split())
        return {
            "type": "object",
            "description": about,
            "properties": properties,
            "patternProperties": DOTTED,
            "additionalProperties": False,
        }

    def field(self, name: str, hint: Any) -> Schema:
        """The value of a field."""
        inner = dataclass_of(hint)
        if inner is None:
            return leaf(hint)
        schema = self.choice(inner) if is_choice(inner) else self.reference(inner)
        if not is_mapping_of_choices(hint):
            return schema
        # Null leaves out a task of the base.
        entry = {"anyOf": [schema, {"type": "null"}]} if name == TASKS else schema
        return {"type": "object", "additionalProperties": entry}

    def reference(self, cls: type) -> Schema:
        """The definition of a dataclass."""
        name = cls.__name__
        if name not in self.definitions:
            self.definitions[name] = {}  # its own fields may lead back to it
            self.definitions[name] = self.fields_of(cls)
        return {"$ref": f"#/definitions/{name}"}

    def choice(self, base: type) -> Schema:
        """The class that a file chooses for `base`, by its name or with arguments."""
        if base.__name__ in self.definitions:
            return {"$ref": f"#/definitions/{base.__name__}"}
        self.definitions[base.__name__] = {}
        # Others' classes are imported where a recipe names them; they have dotted names.
        classes = {
            name: cls
            for name, cls in sorted(concrete_classes(base).items())
            if cls.__module__.startswith("vlds.")
        }
        name = {"anyOf": [{"enum": list(classes)}, {"type": "string", "pattern": r"\w\.\w"}]}
        arguments = [self.reference(cls) for cls in classes.values()]
        by_class = [
            {
                "if": {"properties": {CLASS: {"const": name}}, "required": [CLASS]},
                "then": {"properties": {ARGUMENTS: {"anyOf": [reference, {"type": "null"}]}}},
            }
            for name, reference in zip(classes, arguments, strict=True)
        ]
        of_base = {
            "if": {"not": {"required": [CLASS]}},
            "then": {"properties": {ARGUMENTS: {"anyOf": arguments}}},
        }
        whole = {
            "type": "object",
            "properties": {CLASS: name, ARGUMENTS: {"type": ["object", "null"]}},
            "additionalProperties": False,
            "allOf": [*by_class, of_base],
        }
        # `if`, not `anyOf`: an error names the wrong key, not that no form fits.
        self.definitions[base.__name__] = {
            "if": {"type": "string"},
            "then": name,
            "else": whole,
            "description": " ".join((base.__doc__ or "").split()),
        }
        return {"$ref": f"#/definitions/{base.__name__}"}

    def with_class(self, hint: Any) -> Schema:
        """A choice, or a mapping of choices, that is not a change to a base's."""
        whole = {"if": {"type": "object"}, "then": {"required": [CLASS]}}
        return {"additionalProperties": whole} if is_mapping_of_choices(hint) else whole


def leaf(hint: Any) -> Schema:
    """The value of a field that holds no dataclass."""
    origin, inner = get_origin(hint), get_args(hint)
    if hasattr(hint, "__metadata__"):
        limits = [mark for mark in hint.__metadata__ if isinstance(mark, Limits)]
        return bounded(leaf(inner[0] if origin is None else hint.__origin__), limits)
    if origin in (Union, UnionType):
        return {"anyOf": [leaf(branch) for branch in inner]}
    if origin is Literal:
        return {"enum": list(inner)}
    if origin in (list, tuple, Sequence):
        return {"type": "array", "items": leaf(inner[0])}
    if origin in (dict, Mapping):
        return {"type": "object", "additionalProperties": leaf(inner[1])}
    if hint in (int, float):
        return {"anyOf": [{"type": TYPES[hint]}, {"type": "string", "pattern": NUMBER}]}
    assert not is_dataclass(hint)
    return {"type": TYPES[hint]} if hint in TYPES else {}


def bounded(schema: Schema, limits: Sequence[Limits]) -> Schema:
    """A number's schema with the bounds of its type, which JSON Schema applies to numbers alone."""
    for limit in limits:
        schema = schema | {"exclusiveMinimum" if limit.above_least else "minimum": limit.least}
        if limit.most < LARGEST_SETTING or limit.below_most:
            most = "exclusiveMaximum" if limit.below_most else "maximum"
            schema = schema | {most: limit.most}
    return schema
