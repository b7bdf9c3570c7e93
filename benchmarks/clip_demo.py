"""Trains a tiny CLIP on the demo's captions, then few-shot methods on classes of pictures.

    python benchmarks/clip_demo.py shots --seeds 0 --shots 4 16 --rates 0.002 0.01 0.05
    python benchmarks/clip_demo.py shots --seeds 1 2 3 --shots 1 2 4 8 16 --picture shots.svg
    python benchmarks/clip_demo.py halves --seeds 0 11 --rows APoLLo --rates 0.0001 0.0002 0.0005
    python benchmarks/clip_demo.py halves --seeds 1 2 3 4 5 6 7 8 9 10
    python benchmarks/clip_demo.py shrink --seeds 0 --rates 0.001 0.002 0.004 0.008 0.016
    python benchmarks/clip_demo.py shrink --seeds 0 --rows "width 8" --rates 0.032
    python benchmarks/clip_demo.py shrink --seeds 1 2 3 4 5 6 7 8 9 10

The model is a CLIP of 1 M random weights: a tower of 4 layers for pictures, whose patches are as
large as the cells in which the shapes lie, and one of 3 layers for texts. For each seed, it trains
by `demo_clip.yaml`; then `demo_few_shot.yaml` runs with each method.

`shots` learns 24 classes that the model has not met: six colors, which the captions name, of four
figures, which no picture and no text of the demo has. `halves` learns the figures in three of the
colors, from 16 pictures of each, and is scored on these and on the other three. `shrink` compares
adapters that lose neurons with those that begin narrow, after as many steps.

Tables go to stdout, and with `shots` a picture to `--picture`, for which matplotlib must be
installed. Runs go to runs/clip_demo and, like those of `vlds demo`, to runs/demo/data; what each
scored is added to benchmarks/clip_demo.jsonl. Runs that stand there are not repeated: delete their
lines after a change.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import harmonic_mean, mean, stdev

from few_shot.rows import FEW_SHOT, SHRUNK, SHRUNK_ROWS, TO_NEW, ZERO_SHOT
from few_shot.trial import Trial, train

from vlds.report.comparison_formats import difference_text
from vlds.report.numbers import Number

SHOTS = 16
"""Of the tables that have one number of shots."""
Accuracies = Mapping[str, Sequence[Sequence[float]]]
"""Row -> number of shots, in the order of the command line -> accuracy of each seed."""


def main() -> None:
    """Train what is missing, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    rows: Mapping[str, Collection[str]] = {
        "shots": FEW_SHOT,
        "halves": TO_NEW,
        "shrink": SHRUNK_ROWS,
    }
    parser.add_argument("table", choices=rows)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rates", type=float, nargs="+", help="learning rates to try")
    parser.add_argument("--rows", nargs="+", help="only these rows of the table")
    parser.add_argument("--picture", type=Path, help="SVG file of the table of shots")
    options = parser.parse_args()
    names, rates = options.rows or list(rows[options.table]), options.rates or [None]
    if unknown := sorted(set(names) - set(rows[options.table])):
        parser.error(f"--rows: {unknown} not among {list(rows[options.table])}")
    if options.table == "halves":
        print_halves(names, options.seeds, rates)
    elif options.table == "shrink":
        print_shrunk(names, options.seeds, rates)
    else:
        measured = measure(names, options.seeds, options.shots, rates)
        print_shots(measured, options.shots)
        if options.picture:
            draw(measured, options.shots, options.picture)


def measure(
    names: Iterable[str], seeds: Sequence[int], shots: Sequence[int], rates: Sequence[float | None]
) -> Accuracies:
    """Train rows, beside what the model with texts as classes knows before."""
    zero = [[train(Trial(ZERO_SHOT, SHOTS, seed))["after"] for seed in seeds]] * len(shots)
    trained = {
        f"{name}, {rate:g}" if rate else name: [
            [train(Trial(name, num, seed, rate=rate))["after"] for seed in seeds] for num in shots
        ]
        for name in names
        for rate in rates
    }
    return {ZERO_SHOT: zero} | trained


def print_shots(measured: Accuracies, shots: Sequence[int]) -> None:
    """One column for each number of shots."""
    print(f"| accuracy, percent | {' | '.join(f'{num} shots' for num in shots)} |")
    print(f"|---|{'---|' * len(shots)}")
    for name, cells in measured.items():
        print(f"| {name} | {' | '.join(map(shown, cells))} |")


def print_halves(names: Iterable[str], seeds: Sequence[int], rates: Sequence[float | None]) -> None:
    """Accuracy on the classes that were trained, on the others, and their harmonic mean; and how
    much higher the last two are than before training, seed by seed."""
    heads = ("base classes", "new classes", "less zero-shot", "harmonic mean", "less zero-shot")
    print(f"| accuracy, percent | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")

    def halves(name: str, rate: float | None) -> Sequence[Sequence[float]]:
        scored = [train(Trial(name, SHOTS, seed, "base", rate)) for seed in seeds]
        return [[accuracy[key] for accuracy in scored] for key in ("after", "other")]

    zero = halves(ZERO_SHOT, None)
    print_half(ZERO_SHOT, zero, None)
    for name in names:
        for rate in rates:
            words = f"{name}, {rate:g}" if rate else name
            print_half(words, halves(name, rate or TO_NEW[name]), zero)


def print_half(
    name: str, halves: Sequence[Sequence[float]], zero: Sequence[Sequence[float]] | None
) -> None:
    """A row: accuracies on base and new classes, seed by seed, and those of `zero`."""

    def harmonic(of_both: Sequence[Sequence[float]]) -> list[float]:
        return [harmonic_mean(pair) for pair in zip(*of_both, strict=True)]

    base, new = halves
    cells = [shown(base), shown(new), difference(new, zero[1]) if zero else ""]
    cells += [shown(harmonic(halves)), difference(harmonic(halves), harmonic(zero)) if zero else ""]
    print(f"| {name} | {' | '.join(cells)} |")


def print_shrunk(
    names: Collection[str], seeds: Sequence[int], rates: Sequence[float | None]
) -> None:
    """One row for each method and number of steps, and how much better it is than narrow adapters
    after as many steps, seed by seed."""
    print("| accuracy, percent | steps | | less width 8 |\n|---|---|---|---|")
    for steps, rows in SHRUNK.items():
        for rate in rates:
            narrow: Sequence[float] = ()
            for name in rows:
                if name not in names:
                    continue
                scores = [train(Trial(name, SHOTS, seed, rate=rate))["after"] for seed in seeds]
                words = f"{name}, {rate:g}" if rate else name
                print(f"| {words} | {steps:,} | {shown(scores)} | {difference(scores, narrow)} |")
                if name == next(iter(rows)):
                    narrow = scores


def difference(values: Sequence[float], others: Sequence[float]) -> str:
    """Mean difference of pairs in percent, with half of its 95 % interval if there are several."""
    if not others:
        return ""
    number = Number([100 * (ours - their) for ours, their in zip(values, others, strict=True)])
    return difference_text(number)


def shown(values: Sequence[float]) -> str:
    """Mean in percent, and standard deviation over seeds if there are several."""
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{spread}"


def draw(measured: Accuracies, shots: Sequence[int], file: Path) -> None:
    """Lines over the number of shots, with deviations as bars."""
    from matplotlib import pyplot

    pyplot.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": file.name}
    figure, axes = pyplot.subplots(figsize=(8, 4.2))
    for name, cells in measured.items():
        means = [100 * mean(values) for values in cells]
        spreads = [100 * stdev(values) if len(values) > 1 else 0.0 for values in cells]
        style = "k--" if name == ZERO_SHOT else "o-"
        axes.errorbar(shots, means, spreads, fmt=style, capsize=2, markersize=4, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(shots, [str(num) for num in shots])
    axes.set_xlabel("pictures of each class")
    axes.set_ylabel("accuracy on 24 classes, percent")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    main()
