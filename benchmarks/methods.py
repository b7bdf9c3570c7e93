"""Trains every method on the demo's world: what it costs, and what it scores.

    python benchmarks/methods.py --out runs/methods --seeds 3 --rates 0.001 0.004 0.016
    python benchmarks/methods.py --out runs/methods --seeds 0 1 2

Each seed has its own pictures, a frozen backbone that was pretrained on them, and one run per row,
all with the same number of steps. Each run has one rank; `--jobs` runs share the machine. The first
command compares learning rates, the second uses those of ROWS. Finished runs are not repeated. The
table goes to stdout.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vlds.cli.demo import data_prep, train, vlds, write_recipes
from vlds.report.read.inputs import read_run

SCORES = {
    "vqa": "vqa_accuracy",
    "gqa": "accuracy",
    "nlvr2": "accuracy",
    "caption": "word_f1",
}
"""Task -> its score in the table."""
STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}
"""Number of seeds n -> 97.5 % quantile of Student's t with n - 1 degrees of freedom."""


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    methods: Mapping[str, Any]
    """As in a recipe."""
    rate: float
    """Learning rate: the best of 0.001, 0.004 and 0.016 on seed 3 (for Full also 0.00025). Adapters
    with other sharing use the single adapter's, two methods the smaller of theirs."""
    norms: bool = False
    """Train the backbone's norms too."""


def method(name: str, **fields: Any) -> dict[str, Any]:
    """One entry of a recipe's `methods`."""
    return {name.lower(): {"class_path": name, "init_args": fields}}


def adapter(sharing: str = "single") -> dict[str, Any]:
    """The demo's adapter."""
    return method("Adapter", reduction=8, init="identity", sharing=sharing)


PROMPTS = method("PromptTuning", length=10, hidden_dim=128)

ROWS = {
    "visual embedding alone": Row({}, 0.004),
    "norms": Row({}, 0.016, norms=True),
    "BitFit": Row(method("BitFit", add_biases=True), 0.016),
    "IA3": Row(method("IA3"), 0.016),
    "PromptTuning": Row(PROMPTS, 0.004),
    "PrefixTuning": Row(method("PrefixTuning", length=10, hidden_dim=128), 0.004),
    "LoRA": Row(method("LoRA", rank=8), 0.004),
    "LowRankAdapter": Row(method("LowRankAdapter", reduction=8, rank=1), 0.016),
    "Compacter": Row(method("Compacter", reduction=8, phm_dim=2), 0.016),
    "Hyperformer": Row(
        method("Hyperformer", reduction=8, task_dim=64, hidden_dim=64, projected_dim=8), 0.016
    ),
    "Adapter": Row(adapter(), 0.016),
    "Adapter, half_shared_up": Row(adapter("half_shared_up"), 0.016),
    "Adapter, half_shared_down": Row(adapter("half_shared_down"), 0.016),
    "Adapter, multiple": Row(adapter("multiple"), 0.016),
    "Adapter and PromptTuning": Row(adapter() | PROMPTS, 0.004),
    "Adapter and norms": Row(adapter(), 0.016, norms=True),
    "Full": Row(method("Full"), 0.00025),
}


@dataclass(frozen=True)
class Measured:
    """The result of one run."""

    scores: Mapping[str, float]
    """Task -> score, and "mean"; in percent."""
    percent: float
    """Trainable share of the weights."""
    stored: int
    """Bytes of the artifact's weights."""
    speed: float
    """Training examples per second, the median of the log's lines."""


def main() -> None:
    """Run what is missing, then print a table."""
    options = parse()
    seeds: list[int] = options.seeds
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda seed: prepare(options.out / f"seed-{seed}", seed), seeds))
        plan = [
            (name, seed, rate)
            for seed in seeds
            for name in options.rows or ROWS
            for rate in options.rates or [ROWS[name].rate]
        ]
        done = pool.map(lambda job: measure(options.out, *job), plan)
        measured = dict(zip(plan, done, strict=True))
    print(rates_table(measured) if options.rates else methods_table(measured, seeds))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="at most eight")
    parser.add_argument("--rates", type=float, nargs="+", help="learning rates to try")
    parser.add_argument("--rows", nargs="+", choices=ROWS, metavar="ROW", help="only these rows")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once")
    return parser.parse_args()


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
    """Train one row on one seed, unless it has been trained."""
    folder = out / f"seed-{seed}"
    output = folder / "rows" / f"{name.replace(', ', '_').replace(' ', '_')}-{rate:g}"
    if not (output / "artifact").exists():
        row = ROWS[name]
        recipe = output.with_suffix(f"{output.suffix}.yaml")
        recipe.parent.mkdir(parents=True, exist_ok=True)
        settings = {
            "base": str((folder / "recipes" / "demo.yaml").resolve()),
            "output": str(output),
            "methods": row.methods,
            "train_norms": row.norms,
            "optimizer": {"learning_rate": rate},
            "training": {"deepspeed": "ds_configs/zero2.json", "evaluate_first": False},
        }
        recipe.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        run(train(recipe, seed, 1), output.with_suffix(f"{output.suffix}.txt"))
        print(f"{name}, seed {seed}, learning rate {rate:g}: done", file=sys.stderr, flush=True)
    return read(output)


def run(command: Sequence[str], log: Path) -> None:
    """Run a command on one thread; its output goes to `log`."""
    env = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    with log.open("a", encoding="utf-8") as file:
        code = subprocess.run(command, env=env, stdout=file, stderr=file, check=False).returncode
    if code:
        raise SystemExit(f"{' '.join(command)}: exit code {code}; see {log}")


def read(output: Path) -> Measured:
    """The result of a finished run."""
    run = read_run(output)
    facts = run.scores
    last = [line["scores"] for line in run.lines if "scores" in line]
    scores = {task: 100 * last[-1][task][score] for task, score in SCORES.items()}
    return Measured(
        scores=scores | {"mean": statistics.mean(scores.values())},
        percent=facts.trainable["percent"],
        stored=sum(file.stat().st_size for file in (output / "artifact").glob("*.safetensors")),
        speed=facts.samples_per_second["training"],
    )


Results = Mapping[tuple[str, int, float], Measured]


def rates_table(measured: Results) -> str:
    """Mean score of every row at every learning rate."""
    rates = sorted({rate for _, _, rate in measured})
    lines = [f"| | {' | '.join(f'{rate:g}' for rate in rates)} |", "|---" * (len(rates) + 1) + "|"]
    for name in dict.fromkeys(name for name, _, _ in measured):
        means = []
        for rate in rates:
            runs = [run for key, run in measured.items() if (key[0], key[2]) == (name, rate)]
            means.append(statistics.mean(run.scores["mean"] for run in runs))
        lines.append(f"| {name} | {' | '.join(f'{mean:.1f}' for mean in means)} |")
    return "\n".join(lines)


def methods_table(measured: Results, seeds: Sequence[int]) -> str:
    """One line per row: costs, then scores with 95 % confidence intervals over the seeds."""
    lines = [
        "| | trains % | stores kB | examples/s | VQA | GQA | NLVR2 | caption F1 | mean | to Full |",
        "|---" * 10 + "|",
    ]
    full = by_seed(measured, "Full", seeds)
    for name in dict.fromkeys(name for name, _, _ in measured):
        runs = by_seed(measured, name, seeds)
        speed = statistics.median(run.speed for run in runs)
        cells = [f"{runs[0].percent:.2f}", f"{runs[0].stored / 1000:,.0f}", f"{speed:,.0f}"]
        for task in [*SCORES, "mean"]:
            cells.append(interval([run.scores[task] for run in runs]))
        gains = [a.scores["mean"] - b.scores["mean"] for a, b in zip(runs, full, strict=True)]
        cells.append(interval(gains, sign="+") if name != "Full" else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def by_seed(measured: Results, name: str, seeds: Sequence[int]) -> list[Measured]:
    """A row's runs in the order of the seeds."""
    runs = {seed: run for (row, seed, _), run in measured.items() if row == name}
    return [runs[seed] for seed in seeds]


def interval(values: Sequence[float], sign: str = "") -> str:
    """Mean and half the width of its 95 % confidence interval (Student's t)."""
    mean = format(statistics.mean(values), f"{sign}.1f")
    if len(values) < 2:
        return mean
    half = STUDENT_T[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean} ± {half:.1f}"


if __name__ == "__main__":
    main()
