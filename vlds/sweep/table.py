"""`vlds compare`: which runs make which row, from a sweep's file or from run folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlds.report.compute.collect import distinct, names_of
from vlds.report.compute.comparison import RowSpec, TableSpec, compare
from vlds.report.compute.report import SEED_KEYS
from vlds.report.read.inputs import find_runs
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
    Returns the exit code.

    Errors: ValueError for a mistake in the sweep's file or the runs.
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
        return 0
    check_writable(out, "--out")
    file = out / f"compare.{'txt' if suffix == 'terminal' else suffix}"
    write_whole(file, text)
    tell(file)
    return 0


def spec_of_sweep(words: Sequence[str], split: Split | None) -> tuple[TableSpec, Path]:
    """The table of a sweep, and the sweep's folder."""
    sweep = read_sweep(words)
    rows = [
        RowSpec(
            row,
            [run_folder(sweep, row, seed) for seed in sweep.seeds],
            sweep.published.get(name, {}),
        )
        for row, (name, _) in sweep.rows.items()
    ]
    target = next(iter(sweep.target.items()), None)
    spec = TableSpec(Path(words[0]).stem, rows, split or sweep.split, sweep.scores, target)
    return spec, Path(sweep.output)


def spec_of_runs(folders: Sequence[Path], split: Split) -> tuple[TableSpec, Path]:
    """The table of some runs: a row for all that differ in seed and output alone.

    Errors: ValueError if a folder holds no run, or is named twice.
    """
    paths = distinct(folders)
    runs, errors = find_runs(folders)
    if errors:
        raise errors[0]
    groups: list[tuple[object, list[int]]] = []
    for number, run in enumerate(runs):
        rest = {key: value for key, value in run.recipe_tree.items() if key not in SEED_KEYS}
        members = next((found for known, found in groups if rest and known == rest), None)
        if members is None:
            groups.append((rest, members := []))
        members.append(number)
    names = names_of(paths)
    rows = [
        RowSpec(", ".join(names[n] for n in members), [folders[n] for n in members])
        for _, members in groups
    ]
    title = rows[0].name if len(rows) == 1 else f"{len(rows)} recipes"
    return TableSpec(title, rows, split=split), folders[0]
