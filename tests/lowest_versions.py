"""Prints pip constraints that pin every dependency in pyproject.toml to its lower bound.

`make test-lowest` installs these versions; pip by itself always takes the newest ones.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RANGE = re.compile(r"([\w.-]+)(?:\[[\w,-]+\])?>=([\w.]+)(?:,<[\w.]+)?")
"""For example: fsspec[http]>=2025.10.0, or transformers>=5.20,<6."""
UNPINNED = {"torch"}
"""Package indexes have old versions of torch as CUDA builds of several gigabytes only."""


def requirements() -> list[str]:
    """Every dependency of vlds and of its extras, as pyproject.toml has it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lines: list[str] = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        lines += [line for line in extra if not line.startswith(f"{project['name']}[")]
    return lines


def lower_bound(requirement: str) -> tuple[str, str]:
    """Name and lowest version. Raises ValueError if the requirement has no lower bound."""
    match = RANGE.fullmatch(requirement)
    if match is None:
        raise ValueError(f"pyproject.toml: {requirement!r} is not a range like name>=1.0,<2")
    return match[1], match[2]


def constraints() -> list[str]:
    """Lines `name==version`."""
    bounds = dict(map(lower_bound, requirements()))
    return [f"{name}=={version}" for name, version in bounds.items() if name not in UNPINNED]


if __name__ == "__main__":
    print(*constraints(), sep="\n")
