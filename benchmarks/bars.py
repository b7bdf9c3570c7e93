"""Draws one column of a sweep's table: a bar for each row, with the deviation over its seeds.

    vlds compare sweeps/demo_pretraining.yaml --format csv > table.csv
    python benchmarks/bars.py table.csv --column average --out pretraining.svg

Rows that are named "GROUP, NAME" stand in groups, one color each. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from matplotlib import pyplot


def main() -> None:
    """Read the table and write the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", type=Path)
    parser.add_argument("--column", default="average")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with options.table.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["name"] == options.column]
    draw(rows, options.column, options.out)


def draw(rows: list[dict[str, str]], column: str, out: Path) -> None:
    """Bars beside each other for the groups of one name."""
    pairs = [row["row"].split(", ", 1) for row in rows]
    named = [(pair[0], pair[1]) if len(pair) == 2 else ("", pair[0]) for pair in pairs]
    groups = list(dict.fromkeys(group for group, _ in named))
    names = list(dict.fromkeys(name for _, name in named))
    pyplot.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": out.name}
    figure, axes = pyplot.subplots(figsize=(8, 0.6 + 0.25 * len(rows)))
    height = 0.8 / len(groups)
    for number, group in enumerate(groups):
        of_group = {name: row for (g, name), row in zip(named, rows, strict=True) if g == group}
        places = [names.index(name) + number * height for name in of_group]
        means = [float(row["mean"]) for row in of_group.values()]
        spreads = [float(row["deviation"] or 0) for row in of_group.values()]
        axes.barh(places, means, height, xerr=spreads, capsize=2, label=group or None)
    axes.set_yticks([n + (len(groups) - 1) * height / 2 for n in range(len(names))], names)
    axes.invert_yaxis()
    axes.set_xlabel(f"{column}, percent")
    axes.grid(axis="x", alpha=0.3)
    if len(groups) > 1:
        axes.legend(loc="lower right", fontsize="small")
    figure.tight_layout()
    figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    main()
