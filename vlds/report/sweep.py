"""The file of a sweep (recipes, seeds, what all runs change, and the table that they fill), its
runs and how far each has come, and `vlds compare` of a sweep or of run folders.

A sweep serves three uses: a paper's table on a machine with GPUs (each run on all of them), a small
table on two cores over the demo's world (each seed prepares its own data), and an array of jobs on
a cluster (each job takes the next free run).
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from zlib import crc32

from vlds.data.order.epoch_order import differences
from vlds.evaluation.result import current_scores
from vlds.recipe.build import build, in_yaml, to_tree
from vlds.recipe.choices import field_types
from vlds.recipe.config import Recipe, load_recipe
from vlds.recipe.parse import parse, set_key
from vlds.recipe.paths import BASE, STARTED_IN, changed, file_names, is_below, moved, on_base
from vlds.report.collect import names_of
from vlds.report.comparison import RowSpec, TableSpec, checked_columns, compare
from vlds.report.comparison_formats import FORMATS
from vlds.report.numbers import groups_of_seeds
from vlds.report.read import check_run, read_tree
from vlds.runtime.artifact_files import RECIPE, artifact_folder, home_of
from vlds.runtime.checks import guess
from vlds.runtime.disk import check_writable
from vlds.runtime.files import write_whole
from vlds.runtime.folders import PREDICTIONS
from vlds.runtime.terminal import complain, tell
from vlds.runtime.yaml_file import read_yaml
from vlds.tasks.base import Split, label_of
from vlds.training.states import newest, read_progress, state_folders

LONGEST = 150
"""Letters of a folder's name that come from a row or a product; file systems allow 255."""
SEED, OUTPUT = "{seed}", "{output}"
"""Stand for a run's seed and the sweep's folder in texts of the file."""
SET_IN_ROWS, SET_IN_PREPARED = ("output", "seed"), ("output",)
"""Keys of recipes that the sweep sets. A prepared recipe may have a seed of its own."""


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
        for place, given in (
            ("paths", self.paths), ("prepare", self.prepare), ("output", [self.output])
        ):  # fmt: skip
            for name in given:
                if not name.strip() or "\0" in name:
                    raise ValueError(f"{place}: got {name!r}; name a folder or file")
        if SEED in self.output:
            raise ValueError(f"output: got {self.output}; all seeds share it, so leave {SEED} out")
        if not self.recipes:
            raise ValueError("recipes: the sweep has none; name at least one recipe")
        for key, choices in self.grid.items():
            if not choices:
                raise ValueError(f"grid.{key}: has no values; give a list, like [0.001, 0.004]")
            # As texts: for Python, 1 and true are equal.
            texts = [in_yaml(choice) for choice in choices]
            if repeated := [text for text in texts if texts.count(text) > 1]:
                raise ValueError(f"grid.{key}: {repeated[0]} is there twice; give each value once")
            if key in SET_IN_ROWS:
                raise ValueError(
                    f"grid.{key}: the sweep sets it for each run, from `output` and `seeds`; "
                    "remove the key"
                )
        if not self.seeds:
            raise ValueError("seeds: the sweep has none; give at least one, like [0]")
        twice = sorted({seed for seed in self.seeds if self.seeds.count(seed) > 1})
        if twice:
            raise ValueError(f"seeds: {twice[0]} is there twice; give each seed once")
        for name, recipe in self.recipes.items():
            check_recipe(f"recipes.{name}", recipe, SET_IN_ROWS)
        # Two names may differ in letters that a folder's name does not have.
        folders: dict[str, str] = {}
        for row in self.rows:
            if not (folder := folder_name(row)):
                raise ValueError(f"recipes: '{row}' gives no name for a folder; use letters")
            if (other := folders.setdefault(folder, row)) != row:
                raise ValueError(
                    f"recipes: '{other}' and '{row}' would both write {folder}; rename one"
                )
        if len(self.target) > 1:
            raise ValueError(f"target: names {', '.join(self.target)}; give one score to reach")
        named = [(f"target.{task}", s) for task, s in self.target.items() if isinstance(s, str)]
        named += [("published", row) for row in self.published if row not in self.recipes]
        for place, row in named:
            if row not in self.rows:
                raise ValueError(
                    f"{place}: no row is called '{row}'; {guess(row, self.rows)}rows are "
                    f"{', '.join(self.rows)}"
                )
        products: dict[str, str] = {}
        for product, maker in self.prepare.items():
            place = f"prepare.{product}"
            if (other := products.setdefault(folder_name(product), product)) != product:
                raise ValueError(f"{place}: is called too much like {other}; rename one")
            if isinstance(maker, dict):
                check_recipe(place, maker, SET_IN_PREPARED)
            else:
                try:
                    words = shlex.split(maker)
                except ValueError as error:  # a quote
                    raise ValueError(f"{place}: {error} in `{maker}`; close it") from None
                if not words:
                    raise ValueError(f"{place}: names no command; say what makes it")
            # The second seed would find the first one's product, and use it.
            if SEED in str(maker) and SEED not in product and len(self.seeds) > 1:
                raise ValueError(
                    f"{place}: is made once for each seed, in one place; put {SEED} into its name"
                )

    @property
    def rows(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """Row of the table -> its name in `recipes`, and the grid's values for it. The row's name
        has each key by its shortest end that no other key has."""
        # optimizer.learning_rate -> learning_rate. If the grid has methods.lora.learning_rate too,
        # the first keeps its whole name and the second becomes lora.learning_rate.
        short = {}
        for key in self.grid:
            parts = key.split(".")
            ends = [".".join(parts[start:]) for start in reversed(range(len(parts)))]
            others = [f".{other}" for other in self.grid if other != key]
            unique = (e for e in ends if not any(other.endswith(f".{e}") for other in others))
            short[key] = next(unique, key)
        rows = {}
        for name in self.recipes:
            for values in itertools.product(*self.grid.values()):
                chosen = dict(zip(self.grid, values, strict=True))
                words = [f"{short[key]} {in_yaml(value)}" for key, value in chosen.items()]
                rows[", ".join([name, *words])] = name, chosen
        return rows


def check_recipe(place: str, given: object, set_here: Sequence[str]) -> None:
    """Errors: ValueError if this is neither a recipe's file nor keys of a recipe with its base, or
    has keys that the sweep sets (`set_here`)."""
    names_base = isinstance(given, dict) and isinstance(given.get(BASE), str)
    if not isinstance(given, str) and not names_base:
        raise ValueError(
            f"{place}: got {given!r:.60}; give a recipe's file, or keys with `{BASE}: FILE`"
        )
    for key in set_here:
        if isinstance(given, dict) and key in given:
            raise ValueError(f"{place}.{key}: the sweep sets it for each run; remove the key")


def folder_name(row: str) -> str:
    """A row's name as a folder's name. A long one is cut, and ends in a hash of the whole."""
    # crc32, because `hash` differs between processes.
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
    # Keys too: those of `paths` and `prepare` are folders.
    if isinstance(value, dict):
        return {filled(k, sweep, seed): filled(v, sweep, seed) for k, v in value.items()}
    return [filled(entry, sweep, seed) for entry in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class Preparation:
    """Something that runs need, and what makes it."""

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
        """The file or folder that exists once it is done."""
        return self.product / "artifact" / RECIPE if self.tree else self.product


def preparations(sweep: Sweep) -> Iterator[Preparation]:
    """All preparations in order; those with a seed in their texts once for each seed."""
    for product, maker in sweep.prepare.items():
        for seed in sweep.seeds if SEED in f"{product} {maker}" else [None]:
            path = Path(filled(product, sweep, seed))
            if isinstance(maker, dict):
                yield Preparation(path, [], filled(maker, sweep, seed), seed)
            else:
                # Split first: a folder's name may have spaces.
                words = [filled(word, sweep, seed) for word in shlex.split(maker)]
                yield Preparation(path, words, {}, seed)


@dataclass(frozen=True)
class SweepRun:
    """One recipe with one seed."""

    row: str
    seed: int | None
    """None if the name of the row tells it."""
    recipe: Recipe
    split: Split
    """The list whose scores the table shows."""
    needs: Sequence[Path]
    """What must be prepared before."""

    @property
    def name(self) -> str:
        """The run, for people."""
        return self.row if self.seed is None else f"{self.row}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        return Path(self.recipe.output)

    @property
    def file(self) -> Path:
        """The run's recipe as the sweep wrote it."""
        return self.folder.with_name(f"{self.folder.name}.yaml")

    @property
    def product(self) -> Path:
        """What training writes last."""
        return self.folder / "artifact" / RECIPE

    @property
    def is_trained(self) -> bool:
        """True if all steps are done and the artifact is there."""
        return self.product.is_file()

    @property
    def damage(self) -> str | None:
        """What is wrong with the artifact of a run that is trained; None if nothing is."""
        try:
            artifact_folder(self.folder)
        except ValueError as error:
            return f"{error}; or remove {self.folder}, and the sweep trains it again"
        return None

    @property
    def is_done(self) -> bool:
        """True if nothing is left to do: its artifact, as it is now, has been scored."""
        # The last question, because it reads the weights.
        return self.is_trained and self.is_scored and self.damage is None

    @property
    def is_scored(self) -> bool:
        """True if the run's folder has the scores of its artifact."""
        # The training's evaluations have scored this list; the other one needs `vlds evaluate`.
        if self.split == "evaluate" and (self.folder / "metrics.jsonl").is_file():
            return True
        scored, _ = current_scores(home_of(self.folder) / PREDICTIONS, self.folder)
        tasks = self.recipe.tasks.items()
        # Scores without the hash of weights may be those of an earlier artifact.
        labels = [label_of(name, self.split) for name, task in tasks if task.data_of(self.split)]
        return all(label in scored and scored[label].weights is not None for label in labels)

    @property
    def is_started(self) -> bool:
        """True if a state was saved."""
        return bool(state_folders(self.folder / "state"))

    @property
    def steps_done(self) -> int:
        """Steps of the newest whole state."""
        state, _ = newest(self.folder / "state")
        return 0 if state is None else read_progress(state).step

    def check(self) -> None:
        """Errors: ValueError if the folder holds a run of another recipe."""
        if not (self.is_trained or self.is_started):
            return
        if not self.file.is_file():
            raise ValueError(
                f"output: {self.folder} holds a run that no sweep started; name another output, or "
                "move the folder away"
            )
        now = without_start(to_tree(self.recipe))
        try:
            written = read_yaml(self.file)
            if not isinstance(written, dict):
                raise ValueError(f"{self.file}: holds no recipe")
            changes = differences(without_start(written), now)
            if changes:  # perhaps only of defaults, which a later version has added
                changes = differences(to_tree(load_recipe(self.file)), now)
        except ValueError as error:
            cure = f"move {self.folder} away, or put the recipe back"
            raise ValueError(f"{error}; {cure}") from None
        if changes:
            raise ValueError(
                f"output: {self.folder} holds a run of another recipe ({changes[0]}); name another "
                "output, or move the folder away"
            )


def without_start(tree: dict[str, Any]) -> dict[str, Any]:
    """A saved recipe without the folder that it was started in."""
    return {key: value for key, value in tree.items() if key != STARTED_IN}


def runs_of(sweep: Sweep) -> list[SweepRun]:
    """All runs, in order: every recipe with the first seed, then with the second.

    Errors: ValueError that names the recipe and what is wrong with it; a run folder of another
    recipe.
    """
    trees = {row: tree_of(sweep, row) for row in sweep.rows}
    names = {file.name for tree in trees.values() for file in file_names(tree, Recipe)}
    for path in sweep.paths:
        if not any(is_below(name, path) for name in names):
            raise ValueError(
                f"paths: no recipe reads '{path}'; name a folder that their files begin with, "
                "without a slash at its end"
            )
    # By seeds first: a table with one seed of every row says more than one with all of a few rows.
    runs = []
    for seed in sweep.seeds:
        needs = [made.last for made in preparations(sweep) if made.seed in (None, seed)]
        for row, tree in trees.items():
            folder = run_folder(sweep, row, seed)
            recipe = placed(f"recipes.{row}", sweep, tree, folder, seed)
            runs.append(SweepRun(row, seed, recipe, sweep.split, needs))
    tasks = list(dict.fromkeys(task for run in runs for task in run.recipe.tasks))
    columns = checked_columns(tasks, sweep.scores, list(sweep.target), sweep.published)
    for run in runs:
        for name, task in run.recipe.tasks.items():
            if name in columns and not task.data_of(run.split):
                raise ValueError(
                    f"split: {run.split}, but tasks.{name} of recipes.{run.row} names no data "
                    f"under `{run.split}`; choose the other list, name data there, or leave the "
                    "task out of `scores`"
                )
        run.check()
    return runs


def placed(
    place: str,
    sweep: Sweep,
    tree: dict[str, Any],
    folder: Path,
    seed: int | None,
    *,
    keep_seed: bool = False,
) -> Recipe:
    """A recipe whose run lies in `folder`; `place`: where the sweep's file has it; `keep_seed`: the
    recipe's own seed stays.

    Errors: ValueError that names the place and what is wrong with the recipe.
    """
    own = {"output": str(folder)} | ({} if seed is None or keep_seed else {"seed": seed})
    # `paths` may name the sweep's own folder too, so both are filled in before paths are moved.
    whole = moved(filled(tree, sweep, seed), filled(sweep.paths, sweep, seed), Recipe) | own
    if seed is None and SEED in str(whole):
        raise ValueError(f"{place}: reads files of a seed; name a folder with {SEED}")
    try:
        return build(Recipe, whole)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def prepared_run(sweep: Sweep, made: Preparation, needs: Sequence[Path]) -> SweepRun:
    """The run that a preparation trains.

    Errors: ValueError for a mistake in its recipe; if its folder holds a run of another one.
    """
    place = f"prepare.{made.product}"
    try:
        tree = on_base(made.tree, Path(), Recipe)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    keep_seed = "seed" in made.tree
    recipe = placed(place, sweep, tree, made.product, made.seed, keep_seed=keep_seed)
    run = SweepRun(f"prepare {made.product}", None, recipe, "evaluate", needs)
    run.check()
    return run


def run_folder(sweep: Sweep, row: str, seed: int) -> Path:
    """The folder of a run."""
    return Path(sweep.output, folder_name(row), f"seed-{seed}")


def tree_of(sweep: Sweep, row: str) -> dict[str, Any]:
    """A row's recipe with the sweep's overrides and its values of the grid, before seed and paths
    are filled in."""
    name, values = sweep.rows[row]
    given = sweep.recipes[name]
    try:
        tree = on_base({BASE: given} if isinstance(given, str) else given, Path(), Recipe)
        # `set_key` changes the tree in place, and parts of it may be the sweep's own.
        tree = deepcopy(changed(tree, sweep.overrides, Recipe))
        for key, value in values.items():
            set_key(tree, key.split("."), value, field_types(Recipe))
        return tree
    except ValueError as error:
        raise ValueError(f"recipes.{row}: {error}") from None


def show(
    names: Sequence[str],
    keys: Sequence[str],
    suffix: str,
    out: Path | None,
    split: Split | None,
    minus: str | None = None,
) -> int:
    """`vlds compare`: print the table, or write it into a folder. `keys`: words that change the
    sweep's file; `minus`: the row whose scores are subtracted. Returns the exit code: 2 if
    something could not be read, which is said.

    Errors: ValueError for a mistake in the sweep's file; if none of the runs can be shown.
    """
    if any(name.endswith((".yaml", ".yml")) for name in names):
        if len(names) > 1:
            raise ValueError(f"got {', '.join(names)}; give one sweep, or run folders alone")
        spec, home = spec_of_sweep([names[0], *keys], split)
    elif keys:
        raise ValueError(f"{keys[0]}: no such option; keys go with a sweep, and these are runs")
    else:
        spec, home = spec_of_runs([Path(name) for name in names], split or "evaluate")
    comparison = compare(replace(spec, minus=minus))
    out = home if out is None and suffix == "html" else out  # a terminal cannot show a page
    text = FORMATS[suffix](comparison)
    if out is None:
        tell(text, end="")
    else:
        check_writable(out, "--out")
        file = out / f"compare.{'txt' if suffix == 'terminal' else suffix}"
        write_whole(file, text)
        tell(file)
    for line in comparison.damage:
        complain("vlds compare", ValueError(line))
    return 2 if comparison.damage else 0


def spec_of_sweep(words: Sequence[str], split: Split | None) -> tuple[TableSpec, Path]:
    """The table of a sweep, and the sweep's folder."""
    sweep = read_sweep(words)
    rows = [
        RowSpec(
            row,
            [run_folder(sweep, row, seed) for seed in sweep.seeds],
            # A row's own published values, or those of its recipe.
            sweep.published.get(row, sweep.published.get(recipe, {})),
        )
        for row, (recipe, _) in sweep.rows.items()
    ]
    target = next(iter(sweep.target.items()), None)
    spec = TableSpec(Path(words[0]).stem, rows, split or sweep.split, sweep.scores, target)
    return spec, Path(sweep.output)


def spec_of_runs(folders: Sequence[Path], split: Split) -> tuple[TableSpec, Path]:
    """The table of some runs: a row for all that differ in seed and output alone, each seed once.

    Errors: ValueError if a folder is named twice, or none holds a run.
    """
    runs = dict(zip(names_of(folders), folders, strict=True))
    recipes, notes, damage = {}, [], []
    for name, folder in runs.items():
        try:
            check_run(folder)
            _, recipes[name], _ = read_tree(folder)
        except ValueError as error:
            damage.append(f"{error}; it is left out")
    if not recipes:
        raise ValueError(damage[0])
    rows = []
    for seeds in groups_of_seeds(recipes):
        # A seed may have several runs: a row counts the first of them, and a note names the others.
        names = [first for first, *_ in seeds.values()]
        rows.append(RowSpec(", ".join(names), [runs[name] for name in names]))
        for first, *again in seeds.values():
            notes += [f"{name}: is left out, it has recipe and seed of {first}." for name in again]
    title = rows[0].name if len(rows) == 1 else f"{len(rows)} recipes"
    spec = TableSpec(title, rows, split=split, notes=notes, damage=damage)
    return spec, next(runs[name] for name in recipes)
