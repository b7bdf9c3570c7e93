"""`vlds compare`: which runs make which row, from a sweep's file or from run folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlds.launch.rank import complain
from vlds.report.compute.collect import distinct, names_of
from vlds.report.compute.comparison import RowSpec, TableSpec, compare
from vlds.report.compute.seed_values import groups_of_seeds
from vlds.report.read.inputs import check_run, read_tree
from vlds.report.render.comparison_formats import FORMATS
from vlds.runtime.disk import check_writable
from vlds.runtime.terminal import tell
from vlds.runtime.whole_file import write_whole
from vlds.sweep.file import read_sweep
from vlds.sweep.runs import run_folder
from vlds.tasks.base import Split


def show(
    names: Sequence[str],
    keys: Sequence[str],
    suffix: str,
    out: Path | None,
    split: Split | None,
) -> int:
    """Print the table, or write it into a folder. `keys`: words that change the sweep's file.
    Returns the exit code: 2 if something could not be read, which is said.

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
    comparison = compare(spec)
    out = home if out is None and suffix == "html" else out
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
            sweep.published_of(row),
        )
        for row in sweep.rows
    ]
    target = next(iter(sweep.target.items()), None)
    spec = TableSpec(Path(words[0]).stem, rows, split or sweep.split, sweep.scores, target)
    return spec, Path(sweep.output)


def spec_of_runs(folders: Sequence[Path], split: Split) -> tuple[TableSpec, Path]:
    """The table of some runs: a row for all that differ in seed and output alone, each seed once.

    Errors: ValueError if a folder is named twice, or none holds a run.
    """
    runs = dict(zip(names_of(distinct(folders)), folders, strict=True))
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
        names = [first for first, *_ in seeds.values()]
        rows.append(RowSpec(", ".join(names), [runs[name] for name in names]))
        for first, *again in seeds.values():
            notes += [f"{name}: is left out, it has recipe and seed of {first}." for name in again]
    title = rows[0].name if len(rows) == 1 else f"{len(rows)} recipes"
    spec = TableSpec(title, rows, split=split, notes=notes, damage=damage)
    return spec, next(runs[name] for name in recipes)
