"""`vlds schema`: the JSON Schema by which editors complete and check recipes and sweeps."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlds.cli.words import command_parser
from vlds.runtime.terminal import tell

if TYPE_CHECKING:
    from vlds.recipe.json_schema import Schema

KINDS = ("recipe", "sweep")


def schema(arguments: list[str]) -> int:
    """Write the JSON Schema of recipes or sweeps, by which editors complete keys and classes and
    underline mistakes. A file names it in its first line, as the recipes of vlds do.

    vlds schema recipe --out recipe.schema.json
    # yaml-language-server: $schema=recipe.schema.json
    """
    parser = command_parser(schema)
    parser.add_argument("kind", choices=KINDS, metavar="KIND", help="recipe or sweep")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: print it")
    options = parser.parse_args(arguments)
    text = json.dumps(schema_of(options.kind), indent=1) + "\n"
    if options.out is None:
        tell(text, end="")
        return 0
    from vlds.runtime.files import write_whole

    write_whole(options.out, text)
    return 0


def schema_of(kind: str) -> Schema:
    """The schema of one of KINDS."""
    from vlds.recipe.config import Recipe
    from vlds.recipe.json_schema import json_schema
    from vlds.report.sweep import SEED, SET_IN_PREPARED, SET_IN_ROWS, Sweep

    number = version("vlds")
    recipe = json_schema(Recipe, number)
    if kind == "recipe":
        return recipe
    sweep = json_schema(Sweep, number)
    # A sweep's fields hold recipes as plain trees: it builds them later, once for each seed.
    definitions: dict[str, Any] = recipe.pop("definitions")
    whole = {key: recipe[key] for key in recipe if key not in ("$schema", "$id", "title")}
    part = {key: whole[key] for key in whole if key not in ("if", "then")}

    def without(keys: Sequence[str]) -> Schema:
        fields = whole["properties"]
        return {**whole, "properties": {key: fields[key] for key in fields if key not in keys}}

    prepared = without(SET_IN_PREPARED)
    own_seed = {"type": "string", "pattern": re.escape(SEED)}
    prepared["properties"]["seed"] = {"anyOf": [whole["properties"]["seed"], own_seed]}
    for key, name in (("recipes", "Row"), ("prepare", "Prepared")):
        named = {"anyOf": [{"type": "string"}, {"$ref": f"#/definitions/{name}"}]}
        field = sweep["properties"][key]
        (field["anyOf"][0] if "anyOf" in field else field)["additionalProperties"] = named
    sweep["properties"]["overrides"]["anyOf"][0] = {"$ref": "#/definitions/Overrides"}
    of_recipes = {"Row": without(SET_IN_ROWS), "Prepared": prepared, "Overrides": part}
    sweep["definitions"] |= definitions | of_recipes
    return sweep
