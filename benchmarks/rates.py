"""Chooses the learning rate of each row of a sweep on a seed that its table does not show, then
runs the sweep with these rates and prints its tables.

    python benchmarks/rates.py sweeps/demo_mixture.yaml --seed 5 --rates 0.001 0.004 0.016 \\
      --at-once 2 --minus "adapter, 960 steps"

A row's rate is the one with the best average of the scores, over all values of the sweep's grid;
of equal ones, the smallest. Further words go to `vlds sweep` and `vlds compare`, such as
`--overrides.training.steps 2` for a trial.

All files go to the sweep's folder and one beside it, SWEEP_rates, whose chosen.yaml is the sweep
with its rates. Finished runs are not repeated. What commands say goes to stderr, tables to stdout.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from vlds.recipe.build import in_yaml, to_yaml
from vlds.recipe.paths import BASE
from vlds.report.comparison import compare
from vlds.report.sweep import Sweep, read_sweep, spec_of_sweep

RATE = "optimizer.learning_rate"


def main() -> None:
    """Try the rates, choose, train what is missing, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep", help="YAML file of the sweep")
    parser.add_argument("--seed", type=int, required=True, help="seed that the rates are chosen on")
    parser.add_argument("--rates", type=float, nargs="+", required=True)
    parser.add_argument("--at-once", default="1", help="runs at a time")
    parser.add_argument("--minus", nargs="*", default=[], help="rows to subtract, a table for each")
    options, words = parser.parse_known_args()
    sweep = read_sweep([options.sweep, *words])
    if options.seed in sweep.seeds:
        raise SystemExit(f"{options.sweep}: its table shows seed {options.seed}")
    folder = Path(f"{sweep.output}_rates")
    trial = [options.sweep, *words, "--output", str(folder), "--seeds", f"[{options.seed}]"]
    trial += ["--grid", in_yaml({**sweep.grid, RATE: options.rates})]
    # A rate at which a run fails, as where its loss is infinite, is left out.
    vlds("sweep", *trial, "--at-once", options.at_once, may_fail=True)
    tried = read_sweep(trial)
    averages = averages_of(trial, tried)
    if bare := [row for row, of_row in averages.items() if not of_row]:
        raise SystemExit(f"{', '.join(bare)}: no run has ended; see above")
    chosen = {row: best(of_row) for row, of_row in averages.items()}
    print_rates(averages, chosen)
    file = folder / "chosen.yaml"
    file.write_text(to_yaml(with_rates(options.sweep, sweep, chosen)), encoding="utf-8")
    vlds("sweep", str(file), *words, "--at-once", options.at_once)
    for minus in [[], *(["--minus", row] for row in options.minus)]:
        print(flush=True)
        vlds("compare", str(file), *words, "--format", "md", *minus, out=sys.stdout)


def vlds(*words: str, out: Any = sys.stderr, may_fail: bool = False) -> None:
    """Run a command of vlds."""
    done = subprocess.run([sys.executable, "-m", "vlds", *words], stdout=out)
    if done.returncode != 0 and not (may_fail and done.returncode == 1):
        raise SystemExit(done.returncode)


def averages_of(words: Sequence[str], tried: Sweep) -> dict[str, dict[float, float]]:
    """Row of the sweep -> rate -> average of the scores in percent (or the one score), of the
    runs that have ended."""
    spec, _ = spec_of_sweep(words, None)
    cells: dict[str, dict[float, list[float | None]]] = {name: {} for name in tried.recipes}
    comparison = compare(spec)
    for row in comparison.rows:
        name, values = tried.rows[row.name]
        mean = row.numbers[comparison.values[-1]].mean
        cells[name].setdefault(values[RATE], []).append(mean)
    return {
        name: {rate: fmean(ended) for rate, means in of_row.items() if (ended := whole(means))}
        for name, of_row in cells.items()
    }


def whole(means: Sequence[float | None]) -> list[float]:
    """The averages over the grid, or none where a run has not ended: rates are compared on the
    same values of the grid."""
    ended = [mean for mean in means if mean is not None]
    return ended if len(ended) == len(means) else []


def best(averages: Mapping[float, float]) -> float:
    """The rate with the best average, the smallest of equal ones."""
    return max(sorted(averages), key=lambda rate: averages[rate])


def print_rates(averages: Mapping[str, Mapping[float, float]], chosen: Mapping[str, float]) -> None:
    """The averages, each row's best in bold."""
    rates = sorted({rate for of_row in averages.values() for rate in of_row})
    print(f"| | {' | '.join(map(str, rates))} |\n|---|{'---:|' * len(rates)}")
    for row, of_row in averages.items():
        cells = [f"{of_row[rate]:.1f}" if rate in of_row else "" for rate in rates]
        cells[rates.index(chosen[row])] = f"**{cells[rates.index(chosen[row])]}**"
        print(f"| {row} | {' | '.join(cells)} |")
    edges = [row for row, rate in chosen.items() if rate in (rates[0], rates[-1])]
    print(f"\nBest at the smallest or largest rate that was tried: {', '.join(edges) or 'none'}.")


def with_rates(file: str, sweep: Sweep, chosen: Mapping[str, float]) -> dict[str, Any]:
    """A sweep built on another one, whose rows have their own rates."""
    rows = {}
    for row, rate in chosen.items():
        given = sweep.recipes[row]
        base = {BASE: given} if isinstance(given, str) else {}
        rows[row] = {**base, "optimizer": {"learning_rate": rate}}
    return {BASE: file, "recipes": rows}


if __name__ == "__main__":
    main()
