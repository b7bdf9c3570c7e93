"""Runs with given scores and costs, and the table that compares them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.toys.files import write_lines
from vlds.report.comparison import RowSpec, TableSpec

SCORES = {
    "single adapter": [(0.60, 1.10), (0.64, 1.14), (0.68, 1.12)],
    "LoRA & <b>biases</b>_100%": [(0.50, 1.00), (0.52, 1.30)],
    "full fine-tuning": [(0.7, 1.2)],
}
"""Row -> vqa_accuracy and CIDEr of each seed."""
TRAINS = {"single adapter": 4.18, "LoRA & <b>biases</b>_100%": 5.93, "full fine-tuning": 100.0}
PUBLISHED = {"single adapter": {"vqa": 65.9, "average": 88.5, "trains": 4.2}}


def write_compared_run(
    folder: Path, scores: Mapping[str, Mapping[str, float]], percent: float
) -> Path:
    """A run that logs every four steps, and was evaluated after its fifth, two seconds later, with
    half of the scores, and after its tenth."""
    (folder / "artifact").mkdir(parents=True)
    (folder / "artifact" / "weights.safetensors").write_bytes(b"x" * 3000)
    (folder / "artifact" / "recipe.yaml").write_text("{}")
    half = {task: {name: v / 2 for name, v in of.items()} for task, of in scores.items()}
    counts = {"total": 1000, "trainable": 10 * percent, "percent": percent}
    speed = {"samples_per_second": 120.0, "seconds": 30.0, "most_memory": 2_500_000}
    lines: list[Mapping[str, object]] = [
        {"step": 0, "trainable": counts},
        {"step": 4, "loss": 2.0, **speed},
        {"step": 5, "scores": half, "answers_per_second": 80.0, "seconds_since_log": 2.0},
        {"step": 10, "loss": 1.0, **speed},
        {"step": 10, "scores": scores, "answers_per_second": 90.0},
    ]
    write_lines(folder / "metrics.jsonl", lines)
    return folder


def write_compared(
    folder: Path, published: Mapping[str, Mapping[str, float]] = PUBLISHED
) -> TableSpec:
    """A table of three rows; the last one lacks two of its three runs."""
    rows = []
    for number, (row, of_seeds) in enumerate(SCORES.items()):
        folders = [folder / f"row-{number}" / f"seed-{seed}" for seed in range(len(of_seeds))]
        for place, (accuracy, cider) in zip(folders, of_seeds, strict=True):
            scores = {
                "vqa": {"vqa_accuracy": accuracy, "exact_match": 0.1},
                "caption": {"CIDEr": cider},
            }
            write_compared_run(place, scores, TRAINS[row])
        if number == 2:
            folders += [folder / f"row-2/seed-{seed}" for seed in (1, 2)]
        rows.append(RowSpec(row, folders, published.get(row, {})))
    return TableSpec("table", rows, target=("vqa", 55.0))


def folders_of(spec: TableSpec) -> Sequence[Path]:
    """All run folders of a table that are there."""
    return [folder for row in spec.rows for folder in row.folders if folder.is_dir()]
