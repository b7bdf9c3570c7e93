"""Trains every method on the demo's world: what it costs, and what it scores.

    python benchmarks/methods.py --out runs/methods --seeds 3 --rates 0.001 0.004 0.016
    python benchmarks/methods.py --out runs/methods --seeds 0 1 2
    python benchmarks/methods.py --out runs/methods --seeds 0 1 2 --table related

Each seed has its own pictures, a frozen backbone that was pretrained on them, and one run per row
of `tuning/rows.py`, all with the same number of steps. Each run has one rank; `--jobs` runs share
the machine. The first command compares learning rates, the others use those of the rows. Finished
runs are not repeated. The table goes to stdout.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml
from tuning.rows import INPUT, REFERENCES, ROWS, TABLES, Row
from tuning.split import split
from tuning.table import Measured, methods_table, rates_table, read_merged, read_trained

from vlds.cli.demo import data_prep, train, write_recipes
from vlds.launch.stages import vlds

Job = tuple[str, int, float]
"""Row, seed, learning rate."""


def main() -> None:
    """Run what is missing, then print a table."""
    options = parse()
    names = options.rows or TABLES[options.table]
    if options.rates:
        names = [name for name in names if not ROWS[name].merge]
    plan = [
        (name, seed, rate)
        for seed in options.seeds
        for name in names
        for rate in options.rates or [ROWS[name].rate]
    ]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda seed: prepare(options.out / f"seed-{seed}", seed), options.seeds))
        list(pool.map(lambda job: measure(options.out, *job), inputs_of(plan)))
        done = pool.map(lambda job: measure(options.out, *job), plan)
        measured = dict(zip(plan, done, strict=True))
    if options.rates:
        print(rates_table(measured))
    else:
        print(methods_table(measured, options.seeds, REFERENCES[options.table]))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="at most eight")
    parser.add_argument("--rates", type=float, nargs="+", help="learning rates to try")
    parser.add_argument("--table", choices=TABLES, default="methods", help="whose rows to run")
    parser.add_argument("--rows", nargs="+", choices=ROWS, metavar="ROW", help="only these rows")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once")
    return parser.parse_args()


def inputs_of(plan: Sequence[Job]) -> list[Job]:
    """The runs that those of a plan start from, each once."""
    inputs = [(ROWS[name].input, seed) for name, seed, _ in plan if ROWS[name].input]
    return [(name, seed, ROWS[name].rate) for name, seed in dict.fromkeys(inputs)]


def prepare(folder: Path, seed: int) -> None:
    """Make a seed's pictures and its frozen backbone with the demo's own commands."""
    recipes = write_recipes(folder)
    backbone, pretrain = folder / "backbone", folder / "pretrain"
    stages = [
        (folder / "data" / "spiece.model", data_prep("demo", folder / "data", seed)),
        (pretrain / "artifact", train(recipes["demo_pretrain"], seed, 1)),
        (backbone, vlds("convert", "hf", "--run", pretrain, "--out", backbone)),
    ]
    for product, command in stages:
        if not product.exists():
            run(command, folder / "log.txt")


def measure(out: Path, name: str, seed: int, rate: float) -> Measured:
    """Train one row on one seed, or merge, unless that has been done."""
    row, folder = ROWS[name], out / f"seed-{seed}"
    output = output_of(folder, name, rate)
    start = output_of(folder, row.input, ROWS[row.input].rate) if row.input else Path()
    if row.merge:
        return merged(row, start, output)
    if not (output / "artifact").exists():
        settings = settings_of(row, folder / "recipes" / "demo.yaml", output, rate)
        recipe = beside(output, "yaml")
        recipe.parent.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(settings, sort_keys=False).replace(INPUT, str(start.resolve()))
        recipe.write_text(text, encoding="utf-8")
        run(train(recipe, seed, 1), beside(output, "txt"))
        print(f"{name}, seed {seed}, learning rate {rate:g}: done", file=sys.stderr, flush=True)
    return read_trained(output)


def settings_of(row: Row, demo: Path, output: Path, rate: float) -> dict[str, object]:
    """The recipe of one row, on top of the demo's."""
    training: dict[str, object] = {"deepspeed": "ds_configs/zero2.json", "evaluate_first": False}
    settings: dict[str, object] = {
        "base": str(demo.resolve()),
        "output": str(output),
        "methods": row.methods,
        "model": {"init_args": {"train_norms": row.norms}},
        "optimizer": {"learning_rate": rate},
        "training": training,
    }
    if row.meta:
        steps = yaml.safe_load(demo.read_text(encoding="utf-8"))["training"]["steps"]
        training["steps"] = steps - row.meta
        settings["meta"] = {"steps": row.meta, "learning_rate": 0.004}
    return settings


def merged(row: Row, start: Path, output: Path) -> Measured:
    """Merge the adapters of a run's tasks, and score the result on all tasks."""
    log, scores = beside(output, "txt"), beside(output, "scores")
    if not output.exists():
        runs = split(start, beside(start, "split"))
        run(vlds("convert", "merge", "--how", row.merge, "--run", *runs, "--out", output), log)
    if not scores.exists():
        run(vlds("evaluate", "--run", output, "--out", scores, "--ranks", 1), log)
    return read_merged(output, scores)


def output_of(folder: Path, name: str, rate: float) -> Path:
    """Folder of a row's run below a seed's folder."""
    return folder / "rows" / f"{name.replace(', ', '_').replace(' ', '_')}-{rate:g}"


def beside(output: Path, suffix: str) -> Path:
    """A path beside a run's folder (whose name may have a dot in it)."""
    return output.with_suffix(f"{output.suffix}.{suffix}")


def run(command: Sequence[str], log: Path) -> None:
    """Run a command on one thread; its output goes to `log`."""
    env = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    with log.open("a", encoding="utf-8") as file:
        code = subprocess.run(command, env=env, stdout=file, stderr=file, check=False).returncode
    if code:
        raise SystemExit(f"{' '.join(command)}: exit code {code}; see {log}")


if __name__ == "__main__":
    main()
