"""YAML from anybody's file: bounded in bytes, depth and size before anything is built of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from vlds.runtime import regular_file

LARGEST_FILE = 4 << 20
"""Bytes. Recipes have a few kilobytes."""
DEEPEST = 40
"""Levels of nesting."""
MOST_NODES = 200_000
"""Values, those that aliases repeat counted as often as they stand there."""
LONGEST_SCALAR = 100_000
"""Characters of a text or a number; PyYAML takes minutes for a number that fills the file."""


class TooMuch(ValueError):
    """A text that nobody would write as a recipe."""


def read_yaml(file: Path) -> Any:
    """What a YAML file holds.

    Errors: ValueError that names the file, where it is not a readable regular file, not YAML, or
    larger, deeper or more repetitive than any recipe.
    """
    return parse_yaml(read_text(file), str(file))


def read_text(file: Path) -> str:
    """The text of a regular file.

    Errors: ValueError that names it.
    """
    try:
        return regular_file.read_text(file, LARGEST_FILE)
    except OSError as error:
        raise ValueError(f"{file}: cannot read this recipe: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: a recipe is UTF-8 text, and this is not: {error}") from None


def parse_yaml(text: str, name: str) -> Any:
    """What a YAML text holds; `name` stands in errors.

    Errors: ValueError as above.
    """
    try:
        check_depth(text, name)
        node = yaml.compose(text, yaml.SafeLoader)
        if node is not None and size(node, {}) > MOST_NODES:
            raise TooMuch(
                f"{name}: its aliases stand for more than {MOST_NODES:,} values; write it without "
                "aliases"
            )
        return yaml.safe_load(text)
    except TooMuch:
        raise
    except Exception as error:  # a wrong date, number or truth value is no YAMLError of PyYAML's
        raise ValueError(f"{name}: not YAML: {error}") from None


def check_depth(text: str, name: str) -> None:
    """Errors: TooMuch where values are nested deeper, or longer, than in any recipe."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.ScalarEvent) and len(event.value) > LONGEST_SCALAR:
            raise TooMuch(f"{name}: a value of more than {LONGEST_SCALAR:,} characters")
        if depth > DEEPEST:
            raise TooMuch(f"{name}: nested more than {DEEPEST} levels deep")


def size(node: yaml.Node, known: dict[int, int]) -> int:
    """Values under a node, with what its aliases repeat. One that contains itself has no end."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = MOST_NODES + 1
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        children = [child for pair in node.value for child in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    known[id(node)] = 1 + sum(size(child, known) for child in children)
    return known[id(node)]
