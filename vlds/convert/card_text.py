"""Pieces of a model card: code, tables, and trees without the places of this machine."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

WHOLE_PATH = re.compile(r"(?:file://)?(?:/|~\w*/|\$\w+/|(?:[^\s:]+/)?\.\./)\S.*")
INNER_PATH = re.compile(r"(?:file://(?=/)|(?<![\w.:/~]))~?/(?:[^\s/'\"]+/)+")
"""The folders of a path inside another text, such as a command."""


def fenced(language: str, text: str) -> str:
    """A block of code, with a fence that does not occur in it."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; empty without rows."""
    lines = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    marks = ["---"] * len(head)
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, marks, *lines]) if lines else ""


def without_places(tree: Any) -> Any:
    """A tree whose paths are names, but those that lead down from the working folder."""
    if isinstance(tree, dict):
        return {key: without_places(entry) for key, entry in tree.items()}
    if isinstance(tree, list):
        return [without_places(entry) for entry in tree]
    if not isinstance(tree, str):
        return tree
    return Path(tree).name if WHOLE_PATH.fullmatch(tree) else INNER_PATH.sub("", tree)
