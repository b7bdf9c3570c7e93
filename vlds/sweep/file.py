"""The file of a sweep: recipes, seeds, what all runs change, and the table that they fill.

It serves three uses: a paper's table on a machine with GPUs (each run on all of them), a small
table on two cores over the demo's world (each seed prepares its own data), and an array of jobs on
a cluster (each job takes the next free run).
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

from vlds.artifact import RECIPE
from vlds.recipe.check import in_yaml
from vlds.recipe.files import BASE
from vlds.recipe.parse import parse
from vlds.report.compute.compared_columns import checked_columns
from vlds.runtime.near_names import guess
from vlds.tasks.base import Split

LONGEST = 150
"""Letters of a folder's name that come from a row or a product; file systems allow 255."""
SEED, OUTPUT = "{seed}", "{output}"
"""Stand for a run's seed and the sweep's folder, in texts of the file."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Runs of some recipes with some seeds, and the table that shows them."""

    output: str
    """Folder of the sweep; a run's folder is OUTPUT/ROW/seed-N."""
    recipes: dict[str, Any]
    """Rows of the table, by name: a recipe's file, or keys of a recipe with its `base`."""
    seeds: list[int]
    """Seeds of each recipe."""
    grid: dict[str, list[Any]] = field(default_factory=dict)
    """Dotted key, as on the command line -> values to try, after `overrides`: each recipe makes one
    row per combination of values."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Keys that replace those of every recipe."""
    paths: dict[str, str] = field(default_factory=dict)
    """Folder in a recipe -> folder to read instead."""
    prepare: dict[str, str | dict[str, Any]] = field(default_factory=dict)
    """What runs need, in order: file or folder -> command that makes it, and writes it last; or
    folder of a run -> keys of a recipe with its `base`, which is trained there."""
    split: Split = "evaluate"
    """List of data whose scores the table shows."""
    scores: dict[str, str] = field(default_factory=dict)
    """Task -> score in the table; default: for each task of the recipes its headline."""
    target: dict[str, float | str] = field(default_factory=dict)
    """Task or `average` -> score in percent, or the row whose mean it is; the table shows how long
    it takes to reach it."""
    published: dict[str, dict[str, float]] = field(default_factory=dict)
    """Row -> task, `average` or `trains` -> published value in percent."""

    def __post_init__(self) -> None:
        self._check_names()
        if not self.recipes:
            raise ValueError("recipes: the sweep has none; name at least one recipe")
        for key, choices in self.grid.items():
            if not choices:
                raise ValueError(f"grid.{key}: has no values; give a list, like [0.001, 0.004]")
            texts = [in_yaml(choice) for choice in choices]
            if repeated := [text for text in texts if texts.count(text) > 1]:
                raise ValueError(f"grid.{key}: {repeated[0]} is there twice; give each value once")
            if key in ("output", "seed"):
                raise ValueError(
                    f"grid.{key}: the sweep sets it for each run, from `output` and `seeds`; "
                    "remove the key"
                )
        if not self.seeds:
            raise ValueError("seeds: the sweep has none; give at least one, like [0]")
        twice = sorted({seed for seed in self.seeds if self.seeds.count(seed) > 1})
        if twice:
            raise ValueError(f"seeds: {twice[0]} is there twice; give each seed once")
        self._check_rows()
        if len(self.target) > 1:
            raise ValueError(f"target: names {', '.join(self.target)}; give one score to reach")
        for task, score in self.target.items():
            if isinstance(score, str):
                self._check_is_row(f"target.{task}", score)
        for row in self.published:
            if row not in self.recipes:
                self._check_is_row("published", row)
        self._check_preparations()

    def _check_names(self) -> None:
        """Errors: ValueError for a name that is that of no folder or file."""
        for place, given in (
            ("paths", self.paths), ("prepare", self.prepare), ("output", [self.output])
        ):  # fmt: skip
            for name in given:
                if not name.strip() or "\0" in name:
                    raise ValueError(f"{place}: got {name!r}; name a folder or file")
        if SEED in self.output:
            raise ValueError(f"output: got {self.output}; all seeds share it, so leave {SEED} out")

    def _check_preparations(self) -> None:
        products: dict[str, str] = {}
        for product, maker in self.prepare.items():
            place = f"prepare.{product}"
            if (other := products.setdefault(folder_name(product), product)) != product:
                raise ValueError(f"{place}: is called too much like {other}; rename one")
            if isinstance(maker, dict):
                check_recipe(place, maker)
            elif not words_of(place, maker):
                raise ValueError(f"{place}: names no command; say what makes it")
            if SEED in str(maker) and SEED not in product and len(self.seeds) > 1:
                raise ValueError(
                    f"{place}: is made once for each seed, in one place; put {SEED} into its name"
                )

    def _check_is_row(self, place: str, name: str) -> None:
        if name not in self.rows:
            raise ValueError(
                f"{place}: no row is called '{name}'; {guess(name, self.rows)}rows are "
                f"{', '.join(self.rows)}"
            )

    def _check_rows(self) -> None:
        folders: dict[str, str] = {}
        for row, recipe in self.recipes.items():
            check_recipe(f"recipes.{row}", recipe)
        for row in self.rows:
            if not (folder := folder_name(row)):
                raise ValueError(f"recipes: '{row}' gives no name for a folder; use letters")
            if (other := folders.setdefault(folder, row)) != row:
                raise ValueError(
                    f"recipes: '{other}' and '{row}' would both write {folder}; rename one"
                )

    @property
    def rows(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """Row of the table -> its name in `recipes`, and the grid's values for it."""
        short = short_names(list(self.grid))
        rows = {}
        for name in self.recipes:
            for values in itertools.product(*self.grid.values()):
                chosen = dict(zip(self.grid, values, strict=True))
                words = [f"{short[key]} {in_yaml(value)}" for key, value in chosen.items()]
                rows[", ".join([name, *words])] = name, chosen
        return rows

    def published_of(self, row: str) -> dict[str, float]:
        """What a paper has for a row: under its own name, or that of its recipe."""
        return self.published.get(row, self.published.get(self.rows[row][0], {}))

    def columns(self, tasks: Sequence[str]) -> list[str]:
        """The tasks in the table.

        Errors: ValueError if a score, target or published value is of none of the recipes' tasks.
        """
        return checked_columns(tasks, self.scores, list(self.target), self.published)


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Dotted key -> its shortest end that no other of the keys has."""
    names = {}
    for key in keys:
        parts = key.split(".")
        ends = [".".join(parts[start:]) for start in reversed(range(len(parts)))]
        others = [f".{other}" for other in keys if other != key]
        unique = (e for e in ends if not any(other.endswith(f".{e}") for other in others))
        names[key] = next(unique, key)
    return names


def check_recipe(place: str, given: object) -> None:
    """Errors: ValueError if this is neither a recipe's file nor keys of a recipe with its base."""
    names_base = isinstance(given, dict) and isinstance(given.get(BASE), str)
    if not isinstance(given, str) and not names_base:
        raise ValueError(
            f"{place}: got {given!r:.60}; give a recipe's file, or keys with `{BASE}: FILE`"
        )


def words_of(place: str, command: str) -> list[str]:
    """The words of a command line.

    Errors: ValueError if a quote is not closed.
    """
    try:
        return shlex.split(command)
    except ValueError as error:
        raise ValueError(f"{place}: {error} in `{command}`; close it") from None


def folder_name(row: str) -> str:
    """A row's name as that of a folder; a long one is cut, and ends in a number of its own."""
    name = re.sub(r"[^a-z0-9.+-]+", "_", row.lower()).strip("_.")
    return name if len(name) <= LONGEST else f"{name[:LONGEST]}_{crc32(name.encode()):08x}"


def read_sweep(words: Sequence[str]) -> Sweep:
    """Read a sweep's file, given first, and options such as `--seeds '[0]'` or
    `--overrides.training.steps 10`.

    Errors: ValueError that names file, key and cure.
    """
    return parse(Sweep, ["--config", *words], "vlds sweep", files=True)


def filled(value: Any, sweep: Sweep, seed: int | None) -> Any:
    """A tree of the file with seed and folder in their places."""
    if isinstance(value, str):
        value = value.replace(OUTPUT, sweep.output)
        return value if seed is None else value.replace(SEED, str(seed))
    if isinstance(value, dict):
        return {filled(k, sweep, seed): filled(v, sweep, seed) for k, v in value.items()}
    return [filled(entry, sweep, seed) for entry in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class Preparation:
    """What runs need, and what makes it."""

    product: Path
    """File or folder; of a recipe, the folder of its run."""
    command: list[str]
    """Words; empty if a recipe is trained instead."""
    tree: dict[str, Any]
    """Keys of the recipe."""
    seed: int | None
    """None if all runs share it."""

    @property
    def last(self) -> Path:
        """What is there once it is done."""
        return self.product / "artifact" / RECIPE if self.tree else self.product


def preparations(sweep: Sweep) -> Iterator[Preparation]:
    """All preparations in order; those with a seed in their texts once for each seed."""
    for product, maker in sweep.prepare.items():
        for seed in sweep.seeds if SEED in f"{product} {maker}" else [None]:
            path = Path(filled(product, sweep, seed))
            if isinstance(maker, dict):
                yield Preparation(path, [], filled(maker, sweep, seed), seed)
            else:
                words = [filled(word, sweep, seed) for word in shlex.split(maker)]
                yield Preparation(path, words, {}, seed)
