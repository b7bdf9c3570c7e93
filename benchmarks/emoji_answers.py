"""What stands behind the scores of sweeps/smollm2_emoji.yaml.

    python benchmarks/emoji_answers.py

Reads the data that emoji.py makes and what the sweep's runs predicted. Prints how many answers are
none of a task's labels; the scores on emoji of which no variant trains, and of which one does, with
differences; and how often the training picture with the nearest pixels has the right answer.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlds.report.comparison_formats import difference_text
from vlds.report.numbers import Number

EMOJI, TASKS = ("kind", "exact"), ("kind", "exact", "digit")
MINUS = "single_adapter"
"""The row that differences are from."""
SIDE = 32
"""Pixels of a side of the pictures that are compared with each other."""
MAN, WOMAN, PERSON = "1f468", "1f469", "1f9d1"
Percents = defaultdict[str, defaultdict[str, list[float]]]
"""Row -> task -> value of each seed."""


class Question(NamedTuple):
    """What is asked of one picture."""

    image: str
    answer: str
    split: str


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", type=Path, default=Path("runs/emoji/data"))
    parser.add_argument("--runs", type=Path, default=Path("runs/sweeps/smollm2_emoji"))
    options = parser.parse_args()
    asked = {task: list(read_questions(options.data / f"{task}.jsonl")) for task in TASKS}
    labels = {task: {one.answer for one in some} for task, some in asked.items()}
    trained = {variant_of(one.image) for one in asked["kind"] if one.split == "train"}

    unlabelled, new, known, nearest = (empty_table() for _ in range(4))
    for file in sorted(options.runs.glob("*/seed-*/predictions/*.test.jsonl")):
        row, task = file.parts[-4], file.name.partition(".")[0]
        lines = list(map(json.loads, file.read_text(encoding="utf-8").splitlines()))
        odd = [line["prediction"] not in labels[task] for line in lines]
        unlabelled[row][task].append(percent(odd))
        if task in EMOJI:
            pairs = [
                (variant_of(line["sample"]), line["prediction"] == line["reference"]["answer"])
                for line in lines
            ]
            new[row][task].append(percent([hit for one, hit in pairs if one not in trained]))
            known[row][task].append(percent([hit for one, hit in pairs if one in trained]))

    for task, some in asked.items():
        nearest["nearest picture"][task] = [percent(nearest_is_right(some, options.data))]

    print_table("not a label", unlabelled, TASKS)
    print_table("right, no variant trains", new, EMOJI, MINUS)
    print_table("right, a variant trains", known, EMOJI, MINUS)
    print_table("right", nearest, TASKS)


def read_questions(file: Path) -> Iterator[Question]:
    """Those of one task."""
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield Question(row["images"][0], row["messages"][-1]["content"], row["split"])


def variant_of(image: str) -> str:
    """One name for an emoji as a woman, a man and a person. Its file's name lists code points:
    those of both signs, and of how it is drawn, are left out."""
    first, *others = Path(image).stem.split("-")
    if others and first in (MAN, WOMAN):
        first = PERSON
    return re.sub("-200d-264[02]|-fe0f", "", "-".join([first, *others]))


def nearest_is_right(asked: Sequence[Question], data: Path) -> list[bool]:
    """Does the training picture that differs least from a tested one have its answer?"""
    train, test = ([one for one in asked if one.split == split] for split in ("train", "test"))
    known, seen = (
        np.stack([pixels(data / "pictures" / one.image) for one in some]) for some in (train, test)
    )
    # |a - b|^2 = |a|^2 - 2 ab + |b|^2, whose last part is the same for all training pictures.
    nearest = ((known**2).sum(1) - 2 * seen @ known.T).argmin(1)
    return [train[place].answer == one.answer for place, one in zip(nearest, test, strict=True)]


def pixels(file: Path) -> NDArray[np.float32]:
    """Colors from 0 to 1, one after the other."""
    with Image.open(file) as image:
        small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(small, np.float32).ravel() / np.float32(255)


def empty_table() -> Percents:
    """One without rows."""
    return defaultdict(lambda: defaultdict(list))


def percent(hits: Sequence[bool]) -> float:
    """How many are true."""
    return 100 * fmean(hits)


def print_table(head: str, rows: Percents, tasks: Sequence[str], minus: str = "") -> None:
    """Mean and deviation over seeds and, with `minus`, how much more than that row."""
    columns = [*tasks, *(f"{task} less {minus}" for task in tasks if minus)]
    print(f"| {head}, percent | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    for row, of_task in rows.items():
        cells = []
        for values in (of_task[task] for task in tasks):
            spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{fmean(values):.1f}{spread}")
        for task in tasks if minus else ():
            pairs = zip(of_task[task], rows[minus][task], strict=True)
            cells.append(difference_text(Number([ours - theirs for ours, theirs in pairs])))
        print(f"| {row} | {' | '.join(cells)} |")
    print()


if __name__ == "__main__":
    main()
