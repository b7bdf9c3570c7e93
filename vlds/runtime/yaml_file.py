"""YAML from anybody's file: bytes, depth and number of values are checked before it is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from vlds.runtime import regular_file

LARGEST_FILE = 4 << 20
"""Bytes. A recipe has a few kilobytes."""
DEEPEST = 40
"""Levels of nesting."""
MOST_NODES = 200_000
"""Values, with those that aliases repeat."""
LONGEST_SCALAR = 100_000
"""Characters of a text or a number: PyYAML needs minutes for a number as long as a file."""


class TooMuch(ValueError):
    """A text that is larger, deeper or more repetitive than any recipe."""


def read_yaml(file: Path) -> Any:
    """Read a YAML file.

    Errors: ValueError that names the file if it is not a readable regular file, not YAML, or
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
    """Parse a YAML text; errors begin with `name`.

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
    except Exception as error:  # PyYAML raises no YAMLError for a wrong date or number
        raise ValueError(f"{name}: not YAML: {error}") from None


def check_depth(text: str, name: str) -> None:
    """Errors: TooMuch if values are nested deeper, or are longer, than in any recipe."""
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
    """Number of values under a node, with those that its aliases repeat; more than MOST_NODES for a
    node that contains itself."""
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
