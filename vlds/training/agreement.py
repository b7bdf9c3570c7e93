"""All ranks must run the same thing: checked before the model is built.

A launcher starts each rank with its own command line, files and installation. Ranks that differ in
a learning rate, a seed or a shard would train to weights that belong to no recipe, and ranks that
differ in the number of steps would wait for each other until they time out.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from os.path import commonprefix
from pathlib import Path
from typing import Any

from vlds.recipe.build import to_tree
from vlds.recipe.choices import is_choice
from vlds.recipe.config import Recipe
from vlds.recipe.paths import file_names
from vlds.runtime.ranks import Ranks
from vlds.training.prepare import Prepared

LIBRARIES = (
    "torch", "deepspeed", "transformers", "tokenizers", "numpy", "timm", "webdataset",
    "sentencepiece", "pillow",
)  # fmt: skip
PER_MACHINE = ("data.cache", "data.cache_bytes")
"""Keys of the recipe that each machine may set for itself."""
NAME_FILES = ("model.", "alignment.", "methods.", "tasks.")
"""Parts of the recipe whose files are compared by their content."""
SMALL_FILES = (".json", ".model", ".txt")
"""Files that are compared in a folder of weights: configs and tokenizers."""
LARGEST_COMPARED = 64 << 20
"""Bytes. Larger files are weights: every rank gets those of the first rank."""
MOST_NAMED = 5
"""Differences that the error names."""
SHOWN = 60
"""Characters of a value that the error shows."""
BEFORE = 20
"""How many of them stand before the first one that differs."""

Facts = dict[str, Any]
"""Dotted name -> value of everything that the ranks must have in common."""


def check_agreement(ranks: Ranks, recipe: Recipe, prepared: Prepared, start: str) -> None:
    """Compare what this rank is about to run with the first rank's. Collective.

    `start` says how the run starts (new, resumed, in a new phase). Errors: ValueError on all ranks
    that names each difference with both values.
    """
    compare(ranks, facts_of(recipe, prepared, start))


def compare(ranks: Ranks, facts: Facts) -> None:
    """Errors: as `check_agreement`."""
    # Digests first: the facts are long, and travel only if they differ.
    # The first rank has those of all ranks, so its verdict is everybody's.
    digests = ranks.gather(sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest())
    if ranks.broadcast(digests is None or len(set(digests)) == 1):
        return
    gathered = ranks.gather((socket.gethostname(), facts))
    lines = ranks.broadcast([] if gathered is None else differences(gathered))
    raise ValueError(
        "the ranks do not run the same thing (first rank, other rank):\n  "
        + "\n  ".join(lines)
        + "\nStart all of them with the same command line, files and versions."
    )


def facts_of(recipe: Recipe, prepared: Prepared, start: str) -> Facts:
    """Everything that decides what a run computes."""
    sources = [*prepared.train_sources, *prepared.evaluation_sources]
    data: Facts = {}
    for source in sources:
        for dataset in source.datasets:
            place = f"{source.name}: {dataset.folder}"
            data[place] = f"{dataset.fingerprint()} ({dataset.kind})"
            if dataset.info.fields is not None:
                data[f"{place}, fields"] = dataset.info.fields
            if dataset.quarantine:
                data[f"{place}, samples in quarantine"] = sorted(dataset.quarantine)
    data |= {source.name: source.fingerprint() for source in prepared.streamed_sources}
    tree = flat(to_tree(recipe))
    # The tasks' data sets are compared above, by their fingerprints.
    named = {
        file.key: file.name
        for file in file_names(to_tree(recipe), Recipe)
        if file.key.startswith(NAME_FILES)
        and not (file.mark.kind == "data" and file.key.startswith("tasks."))
    }
    # Classes from outside vlds that the recipe chooses: the files that define them and their bases.
    choices = [*chosen(recipe.model), *recipe.methods.values(), *recipe.tasks.values()]
    own_code: Facts = {}
    for name in sorted({cls.__module__ for choice in choices for cls in type(choice).__mro__}):
        file = getattr(sys.modules.get(name), "__file__", None)
        if not name.startswith("vlds.") and file is not None and os.path.isfile(file):
            digest = digest_of([Path(file)], Path(file).parent)
            own_code[f"code of {name} (sha256)"] = digest
    return {
        "start": start,
        **{name: value for name, value in tree.items() if name not in PER_MACHINE},
        "order of the tasks": list(recipe.tasks),
        "order of the methods": list(recipe.methods),
        **{f"content of {name} (sha256)": digest for name, digest in contents(named)},
        **flat(prepared.deepspeed, "DeepSpeed's configuration: "),
        **flat(data, "data set "),
        **{f"version of {name}": version(name) for name in LIBRARIES},
        "version of Python": platform.python_version(),
        "code of vlds (sha256)": code_digest(),
        **own_code,
    }


def chosen(choice: Any) -> Iterator[Any]:
    """A choice of the recipe and those in its fields."""
    yield choice
    for field in fields(choice):
        if is_choice(type(value := getattr(choice, field.name))):
            yield from chosen(value)


def contents(named: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Each key whose value is a local file, or a folder with configs and a tokenizer, and the
    digest of these files."""
    for name, value in named.items():
        if not os.path.exists(value):  # a name on the hub
            continue
        # Sorted, because the order of a folder's files differs between machines.
        path = Path(value)
        paths = [f for f in path.iterdir() if f.suffix in SMALL_FILES] if path.is_dir() else [path]
        files = [f for f in sorted(paths) if f.is_file() and f.stat().st_size <= LARGEST_COMPARED]
        if files:
            yield name, digest_of(files, files[0].parent)


def flat(tree: Any, name: str = "") -> Facts:
    """The leaves of nested mappings, by their dotted names."""
    if not isinstance(tree, Mapping) or not tree:
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
    package = Path(__file__).parents[1]
    return digest_of(sorted(package.rglob("*.py")), package)


def digest_of(files: Iterable[Path], folder: Path) -> str:
    """sha256 over some files and their names in a folder."""
    digest = sha256()
    for file in files:
        digest.update(str(file.relative_to(folder)).encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def differences(gathered: list[tuple[str, Facts]]) -> list[str]:
    """A line for each of the first differences from the first rank, and for how many more.
    `gathered`: host and facts of each rank."""
    (_, first), *others = gathered
    is_one_host = len({host for host, _ in gathered}) == 1
    lines: dict[str, str] = {}
    for rank, (host, facts) in enumerate(others, 1):
        where = f"rank {rank}" if is_one_host else f"rank {rank} ({host})"
        for name in sorted(first.keys() | facts.keys()):
            values = [entry.get(name, "nothing") for entry in (first, facts)]
            encoded = [json.dumps(value) for value in values]
            if encoded[0] == encoded[1]:
                continue
            texts = [str(value) for value in values]
            if texts[0] == texts[1]:  # such as 1 and "1"
                texts = encoded
            # Of long texts, show the part around the first difference.
            difference = len(commonprefix(texts))  # noqa: RUF071 (by character)
            shown_texts = []
            for text in texts:
                begin = max(0, difference - BEFORE) if len(text) > SHOWN else 0
                part = text[begin : begin + SHOWN]
                cut_behind = begin + SHOWN < len(text)
                shown_texts.append(f"{'...' * (begin > 0)}{part}{'...' * cut_behind}")
            here, there = shown_texts
            lines.setdefault(name, f"{name}: {here}, on {where} {there}")
    shown = list(lines.values())[:MOST_NAMED]
    more = len(lines) - len(shown)
    return [*shown, f"and {more} more"] if more else shown
