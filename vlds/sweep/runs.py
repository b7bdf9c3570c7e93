"""The runs of a sweep: their recipes, their folders, and how far each has come."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlds.artifact import RECIPE, artifact_folder
from vlds.config import Recipe, load_recipe, recipe_from, save_recipe, to_tree
from vlds.data.order.permutation import differences
from vlds.evaluation.scores_json import current_scores
from vlds.recipe.choices import field_types
from vlds.recipe.files import BASE, changed, on_base
from vlds.recipe.parse import set_key
from vlds.recipe.paths import STARTED_IN, file_names, is_below, moved
from vlds.runtime.run_folder import PREDICTIONS
from vlds.runtime.yaml_file import read_yaml
from vlds.sweep.file import SEED, Preparation, Sweep, filled, folder_name, preparations
from vlds.tasks.base import Split, label_of
from vlds.training.states import newest, read_progress, state_folders


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
        """For people."""
        return self.row if self.seed is None else f"{self.row}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        """The run's folder."""
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
    def is_done(self) -> bool:
        """True if nothing is left to do: its artifact, as it is now, has been scored."""
        if not self.is_trained:
            return False
        if self.split == "evaluate":
            return True
        artifact_folder(self.folder)  # a damaged one is an error
        scored, _ = current_scores(self.folder / PREDICTIONS, self.folder)
        tasks = self.recipe.tasks.items()
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

    def write_recipe(self) -> None:
        """Write the recipe beside the run's folder.

        Errors: CannotWrite.
        """
        save_recipe(self.recipe, self.file)


def without_start(tree: dict[str, Any]) -> dict[str, Any]:
    """A saved recipe without the folder that it was started in."""
    return {key: value for key, value in tree.items() if key != STARTED_IN}


def runs_of(sweep: Sweep) -> list[SweepRun]:
    """All runs, in order: every recipe with the first seed, then with the second.

    Errors: ValueError that names the recipe and what is wrong with it; a run folder of another
    recipe.
    """
    trees = {row: tree_of(sweep, row) for row in sweep.rows}
    check_paths(sweep, trees)
    runs = []
    for seed in sweep.seeds:
        needs = [made.last for made in preparations(sweep) if made.seed in (None, seed)]
        for row, tree in trees.items():
            folder = run_folder(sweep, row, seed)
            recipe = placed(f"recipes.{row}", sweep, tree, folder, seed)
            runs.append(SweepRun(row, seed, recipe, sweep.split, needs))
    columns = sweep.columns(task_names(runs))
    for run in runs:
        check_split(run, columns)
        run.check()
    return runs


def placed(
    place: str, sweep: Sweep, tree: dict[str, Any], folder: Path, seed: int | None
) -> Recipe:
    """A recipe whose run lies in `folder`; `place`: where the sweep's file has it.

    Errors: ValueError that names the place and what is wrong with the recipe.
    """
    own = {"output": str(folder)} | ({} if seed is None else {"seed": seed})
    whole = moved(filled(tree, sweep, seed), filled(sweep.paths, sweep, seed)) | own
    if seed is None and SEED in str(whole):
        raise ValueError(f"{place}: reads files of a seed; name a folder with {SEED}")
    try:
        return recipe_from(whole)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def prepared_run(sweep: Sweep, made: Preparation, needs: Sequence[Path]) -> SweepRun:
    """The run that a preparation trains.

    Errors: ValueError for a mistake in its recipe; if its folder holds a run of another one.
    """
    place = f"prepare.{made.product}"
    try:
        tree = on_base(made.tree, Path())
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    recipe = placed(place, sweep, tree, made.product, made.seed)
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
        tree = on_base({BASE: given} if isinstance(given, str) else given, Path())
        tree = deepcopy(changed(tree, sweep.overrides))
        for key, value in values.items():
            set_key(tree, key.split("."), value, field_types(Recipe))
        return tree
    except ValueError as error:
        raise ValueError(f"recipes.{row}: {error}") from None


def task_names(runs: Sequence[SweepRun]) -> list[str]:
    """The tasks of all recipes."""
    return list(dict.fromkeys(task for run in runs for task in run.recipe.tasks))


def check_paths(sweep: Sweep, trees: dict[str, dict[str, Any]]) -> None:
    """Errors: ValueError for a folder that no recipe reads."""
    names = {name for tree in trees.values() for _, name in file_names(tree)}
    for folder in sweep.paths:
        if not any(is_below(name, folder) for name in names):
            raise ValueError(
                f"paths: no recipe reads '{folder}'; name a folder that their files begin with, "
                "without a slash at its end"
            )


def check_split(run: SweepRun, columns: Sequence[str]) -> None:
    """Errors: ValueError for a task in the table without the data whose scores it shows."""
    for name, task in run.recipe.tasks.items():
        if name in columns and not task.data_of(run.split):
            raise ValueError(
                f"split: {run.split}, but tasks.{name} of recipes.{run.row} names no data under "
                f"`{run.split}`; choose the other list, name data there, or leave the task out of "
                "`scores`"
            )
