"""Chooses the learning rate of each row of a sweep on a seed that its table does not show, then
trains the rows with these rates on the table's seeds, and prints tables.

    python benchmarks/rates.py sweeps/demo_mixture.yaml --seed 5 --rates 0.001 0.004 0.016 \\
      --at-once 2 --minus "adapter, 960 steps"

A row's rate is the one with the best average of the scores, over all values of the sweep's grid;
of equal ones, the smallest. If the sweep's table is of the `test` lists, rates are chosen by the
`evaluate` lists. With `--choose ROW ...`, the other rows keep those of their recipes.
Further words go to `vlds sweep`, such as `--overrides.training.steps 2` for a trial (give another
`--scores` with them).

What each run scored is added to benchmarks/NAME.jsonl, NAME being the sweep's. Runs that stand
there are not repeated, so that a long table can be made in parts, also on several machines: delete
their lines after a change. What commands say goes to stderr, tables to stdout.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from vlds.recipe.build import in_yaml, to_tree, to_yaml
from vlds.report.comparison import AVERAGE, compare
from vlds.report.comparison_formats import difference_text
from vlds.report.numbers import Number
from vlds.report.sweep import Sweep, read_sweep, spec_of_sweep

RATE = "optimizer.learning_rate"
NOTE_S = 60.0
"""Seconds after which runs that have ended meanwhile are noted."""


def main() -> None:
    """Try the rates, choose, train what is missing, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep", help="YAML file of the sweep")
    parser.add_argument("--seed", type=int, required=True, help="seed that the rates are chosen on")
    parser.add_argument("--rates", type=float, nargs="+", required=True)
    parser.add_argument("--choose", nargs="+", help="rows whose rate is chosen; default: all")
    parser.add_argument("--at-once", default="1", help="runs at a time")
    parser.add_argument("--minus", nargs="*", default=[], help="rows to subtract, a table for each")
    parser.add_argument("--scores", type=Path, help="default: benchmarks/NAME.jsonl")
    options, words = parser.parse_known_args()
    sweep = read_sweep([options.sweep, *words])
    if options.seed in sweep.seeds:
        raise SystemExit(f"{options.sweep}: its table shows seed {options.seed}")
    file = options.scores or Path(__file__).with_name(f"{Path(options.sweep).stem}.jsonl")
    table = Table(sweep, file, options.at_once)
    choose = options.choose or list(sweep.recipes)
    if unknown := [row for row in choose if row not in sweep.recipes]:
        raise SystemExit(f"--choose: {options.sweep} has no row {unknown[0]!r}")
    table.train({row: options.rates for row in choose}, [options.seed], choosing=True)
    tried = {row: table.by_rate(row, options.seed, options.rates) for row in choose}
    if bare := [row for row, of_row in tried.items() if not of_row]:
        raise SystemExit(f"{', '.join(bare)}: no run has ended; see above")
    for row, of_row in tried.items():
        if left_out := [f"{rate:g}" for rate in options.rates if rate not in of_row]:
            print(
                f"{row}: left out {', '.join(left_out)}, since a run has not ended", file=sys.stderr
            )
    best = {row: max(sorted(of_row), key=of_row.__getitem__) for row, of_row in tried.items()}
    print_rates(tried, best)
    chosen: dict[str, float | None] = {row: best.get(row) for row in sweep.recipes}
    table.train({row: [rate] for row, rate in chosen.items()}, sweep.seeds)
    print_table(table, chosen, None)
    for minus in options.minus:
        print_table(table, chosen, minus)


@dataclass(frozen=True)
class Table:
    """A sweep's runs, and the file of what they scored."""

    sweep: Sweep
    file: Path
    at_once: str

    @property
    def values(self) -> list[dict[str, Any]]:
        """All combinations of the grid's values."""
        return [
            dict(zip(self.sweep.grid, some, strict=True))
            for some in product(*self.sweep.grid.values())
        ]

    def known(self) -> list[Mapping[str, Any]]:
        """The runs that have ended."""
        if not self.file.exists():
            return []
        return [json.loads(line) for line in self.file.read_text(encoding="utf-8").splitlines()]

    def scores(
        self, row: str, seed: int, rate: float | None, values: Mapping[str, Any]
    ) -> Mapping[str, float] | None:
        """What a run scored; None if it has not ended."""
        wanted = {"row": row, "seed": seed, "rate": rate, "values": dict(values)}
        found = [run["scores"] for run in self.known() if {**run, **wanted} == run]
        return found[-1] if found else None

    def train(
        self,
        rates: Mapping[str, Sequence[float | None]],
        seeds: Sequence[int],
        *,
        choosing: bool = False,
    ) -> None:
        """Train what the rows lack of these seeds at their rates, and note what it scores; None is
        the recipe's own rate. `choosing`: to choose from the rates."""
        # As few sweeps as can be, since at the end of each a run may be alone on the machine.
        parts: dict[tuple[tuple[str, ...], tuple[int, ...], bool], list[float | None]] = {}
        for rate in dict.fromkeys(rate for of_row in rates.values() for rate in of_row):
            rows_at_rate = [row for row, of_row in rates.items() if rate in of_row]
            seeds_of: dict[tuple[str, ...], list[int]] = defaultdict(list)
            for seed in seeds:
                lacking = tuple(row for row in rows_at_rate if self.lacks(row, seed, rate))
                seeds_of[lacking].append(seed)
            for lacking, same_seeds in seeds_of.items():
                if lacking:
                    parts.setdefault((lacking, tuple(same_seeds), rate is None), []).append(rate)
        for (rows, part_seeds, keeps_rate), part_rates in parts.items():
            part = replace(
                self.sweep,
                recipes={row: self.sweep.recipes[row] for row in rows},
                seeds=list(part_seeds),
                grid=self.sweep.grid if keeps_rate else {**self.sweep.grid, RATE: part_rates},
                split="evaluate" if choosing else self.sweep.split,
            )
            text = to_yaml(to_tree(part))
            name = f"part-{sha256(text.encode()).hexdigest()[:8]}.yaml"
            file = Path(self.sweep.output) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
            words = [sys.executable, "-m", "vlds", "sweep", str(file), "--at-once", self.at_once]
            with subprocess.Popen(words, stdout=sys.stderr) as process:
                while process.poll() is None:
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(NOTE_S)
                    self.note(file)
            # 1: some runs have failed. A rate at which one does, as where its loss is infinite, is
            # left out.
            code = process.returncode
            if code and not (choosing and code == 1):
                raise SystemExit(code)

    def lacks(self, row: str, seed: int, rate: float | None) -> bool:
        """True if a run of the grid has not ended."""
        return any(self.scores(row, seed, rate, values) is None for values in self.values)

    def note(self, file: Path) -> None:
        """Add what the runs of a part that have ended scored to the file."""
        part = read_sweep([str(file)])
        spec, _ = spec_of_sweep([str(file)], None)
        try:
            comparison = compare(spec)
        except ValueError:  # none has ended
            return
        with self.file.open("a", encoding="utf-8") as lines:
            for row in comparison.rows:
                name, values = part.rows[row.name]
                rate = values.pop(RATE, None)
                found = {
                    key: dict(zip(row.numbers[key].seeds, row.numbers[key].values, strict=True))
                    for key in comparison.values
                }
                for seed in part.seeds:
                    scores = {key: of_key.get(str(seed)) for key, of_key in found.items()}
                    if None in scores.values() or self.scores(name, seed, rate, values):
                        continue
                    run = {"row": name, "seed": seed, "rate": rate, "values": values}
                    lines.write(json.dumps({**run, "scores": scores}) + "\n")

    def cells(self, row: str, seed: int, rate: float | None) -> Mapping[str, float] | None:
        """Column -> number of a row of the tables: all scores of a run; or with a grid, the main
        score at each of its values, and their average. None if a run has not ended."""
        found = [self.scores(row, seed, rate, values) for values in self.values]
        ended = [scores for scores in found if scores is not None]
        if len(ended) < len(found):
            return None
        if not self.sweep.grid:
            return ended[0]
        names = [
            ", ".join(f"{key.rpartition('.')[2]} {in_yaml(value)}" for key, value in values.items())
            for values in self.values
        ]
        numbers = [main_score(scores) for scores in ended]
        return {**dict(zip(names, numbers, strict=True)), AVERAGE: fmean(numbers)}

    def by_rate(self, row: str, seed: int, rates: Sequence[float]) -> dict[float, float]:
        """Rate -> average score over the grid; without rates at which a run has failed."""
        of_row = {}
        for rate in rates:
            found = [self.scores(row, seed, rate, values) for values in self.values]
            ended = [main_score(scores) for scores in found if scores is not None]
            if len(ended) == len(found):
                of_row[rate] = fmean(ended)
        return of_row


def main_score(scores: Mapping[str, float]) -> float:
    """The average of all scores, or the one score."""
    return scores.get(AVERAGE, next(iter(scores.values())))


def print_rates(tried: Mapping[str, Mapping[float, float]], chosen: Mapping[str, float]) -> None:
    """The averages, each row's best in bold."""
    rates = sorted({rate for of_row in tried.values() for rate in of_row})
    print(f"| | {' | '.join(map(str, rates))} |\n|---|{'---:|' * len(rates)}")
    for row, of_row in tried.items():
        cells = [f"{of_row[rate]:.1f}" if rate in of_row else "" for rate in rates]
        cells[rates.index(chosen[row])] = f"**{cells[rates.index(chosen[row])]}**"
        print(f"| {row} | {' | '.join(cells)} |")
    edges = [row for row, rate in chosen.items() if rate in (rates[0], rates[-1])]
    print(f"\nBest at the smallest or largest rate that was tried: {', '.join(edges) or 'none'}.")


def print_table(table: Table, chosen: Mapping[str, float | None], minus: str | None) -> None:
    """Mean and deviation of each row over the seeds; or mean and 95 % interval of what a row is
    better than another one, seed by seed."""
    of_rows = {
        row: {seed: table.cells(row, seed, rate) for seed in table.sweep.seeds}
        for row, rate in chosen.items()
    }
    columns = list(next(cells for of_row in of_rows.values() for cells in of_row.values() if cells))
    print(f"\n| less {minus} |" if minus else "\n| |", " | ".join(columns), "|")
    print(f"|---|{'---:|' * len(columns)}")
    for row, of_row in of_rows.items():
        texts = [row]
        for column in columns:
            if minus is None:
                numbers = [cells[column] for cells in of_row.values() if cells]
                spread = f" ± {stdev(numbers):.1f}" if len(numbers) > 1 else ""
                texts.append(f"{fmean(numbers):.1f}{spread}" if numbers else "")
            else:
                pairs = ((cells, of_rows[minus][seed]) for seed, cells in of_row.items())
                differences = [one[column] - two[column] for one, two in pairs if one and two]
                texts.append(difference_text(Number(differences)))
        if row != minus:
            print(f"| {' | '.join(texts)} |", flush=True)


if __name__ == "__main__":
    main()
