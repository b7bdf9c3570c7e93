"""All ranks must run the same thing: checked before the model is built.

A launcher starts each rank with its own command line, files and installation. Ranks that differ in
a learning rate, a seed or a shard would train to weights that belong to no recipe, and ranks that
differ in the number of steps would wait for each other until they time out.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import vlds
from vlds.config import Recipe, to_tree
from vlds.training.build import Prepared
from vlds.training.distributed import Ranks

LIBRARIES = ("torch", "deepspeed", "transformers", "numpy", "timm", "webdataset", "sentencepiece")
PER_MACHINE = ("data.cache", "data.cache_bytes")
"""Keys of the recipe that each machine may set for itself."""
MOST_NAMED = 5
"""Differences that the error names."""
ABSENT = "nothing"

Facts = dict[str, Any]
"""Dotted name -> value of everything that the ranks must have in common."""


def check_agreement(ranks: Ranks, recipe: Recipe, prepared: Prepared, start: str) -> None:
    """Compare what this rank is about to run with what the first rank is. Collective.

    `start` says how the run starts (new, resumed, in a new phase). Errors: ValueError on all ranks
    that names what differs, with both values.
    """
    facts = facts_of(recipe, prepared, start)
    digests = ranks.gather(sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest())
    if ranks.broadcast(digests is None or len(set(digests)) == 1):
        return
    gathered = ranks.gather(facts)
    lines = ranks.broadcast([] if gathered is None else differences(gathered))
    raise ValueError(
        "the ranks do not run the same thing (first rank, other rank):\n  "
        + "\n  ".join(lines)
        + "\nStart all of them with the same command line, files and versions."
    )


def facts_of(recipe: Recipe, prepared: Prepared, start: str) -> Facts:
    """Everything that decides what a run computes."""
    sources = [*prepared.train_sources, *prepared.evaluation_sources]
    data = {
        f"{source.name}: {dataset.folder}": dataset.fingerprint()
        for source in sources
        for dataset in source.datasets
    }
    data |= {source.name: source.fingerprint() for source in prepared.streamed_sources}
    tree = flat(to_tree(recipe))
    return {
        "start": start,
        **{name: value for name, value in tree.items() if name not in PER_MACHINE},
        **flat(prepared.deepspeed, "DeepSpeed's configuration: "),
        **flat(data, "data set "),
        **{f"version of {name}": version(name) for name in LIBRARIES},
        "version of Python": platform.python_version(),
        "code of vlds (sha256)": code_digest(),
    }


def flat(tree: Any, name: str = "") -> Facts:
    """The leaves of nested mappings, by their dotted names."""
    if not isinstance(tree, Mapping):
        return {name.removesuffix("."): tree}
    leaves: Facts = {}
    for key, value in tree.items():
        # A choice's class stands for itself; its fields follow without `init_args`.
        deeper = name if key == "init_args" else f"{name}{key}."
        leaves |= flat(value, deeper)
    return leaves


@cache
def code_digest() -> str:
    """sha256 over the Python files of this installation of vlds."""
    digest = sha256()
    package = Path(vlds.__file__).parent
    for file in sorted(package.rglob("*.py")):
        digest.update(str(file.relative_to(package)).encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def differences(gathered: list[Facts]) -> list[str]:
    """A line for each of the first differences from the first rank, and for how many more."""
    first, *others = gathered
    lines: dict[str, str] = {}
    for rank, facts in enumerate(others, 1):
        for name in sorted(first.keys() | facts.keys()):
            one, other = first.get(name, ABSENT), facts.get(name, ABSENT)
            if one != other:
                lines.setdefault(name, f"{name}: {short(one)}, on rank {rank} {short(other)}")
    named = list(lines.values())[:MOST_NAMED]
    more = len(lines) - len(named)
    return [*named, f"and {more} more"] if more else named


def short(value: Any) -> str:
    """A value in at most a line."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
