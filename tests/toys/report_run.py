"""A run folder with every file that a report reads."""

from __future__ import annotations

import math
from io import BytesIO
from pathlib import Path

from PIL import Image

from tests.toys.files import write_lines
from vlds.evaluation.result import Scored, write_scores
from vlds.report.read import GalleryEntry, Scores, TaskScores, write_gallery

TASKS = {"vqa": "vqa_accuracy", "gqa": "accuracy", "nlvr": "accuracy", "caption": "word_f1"}
COLUMNS = ("majority", "frozen", "norms only", "adapters")
"""The last one belongs to the run itself."""
NASTY = '<script>alert("x")</script> & $5_000^2'

SCORES = Scores(
    COLUMNS,
    {
        task: TaskScores(
            {
                label: {"CIDEr": 4.5, metric: 0.2 + 0.2 * position, f"{metric}/part/yes/no": 0.5}
                for position, label in enumerate(COLUMNS)
                if (task, label) != ("caption", "majority")
            },
            examples=1234,
            headline=metric,
        )
        for task, metric in TASKS.items()
    },
    trainable={"total": 930_000, "trainable": 69_000, "percent": 7.419},
    bytes_per_rank={"frozen": 860_000, "optimizer": 420_000},
    samples_per_second={"training": 731.4},
)
STORED = {
    task: Scored(
        entry.data,
        entry.examples,
        entry.by_column[COLUMNS[-1]],
        entry.headline,
        {label: entry.by_column[label] for label in COLUMNS[:-1] if label in entry.by_column},
    )
    for task, entry in SCORES.tasks.items()
}
"""The scores of a run in a folder called adapters."""


def picture(color: tuple[int, int, int]) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (64, 64), color).save(buffer, "PNG")
    return buffer.getvalue()


def write_report_run(folder: Path) -> Path:
    """Write metrics.jsonl, scores.json, gallery/ and recipe.yaml."""
    folder.mkdir(parents=True)
    facts = {"bytes_per_rank": SCORES.bytes_per_rank, "trainable": SCORES.trainable}
    lines: list[dict] = [{"step": 0, **facts}]
    for step in range(10, 310, 10):
        losses = {f"loss/{task}": 3 * math.exp(-step / 60) + 0.1 for task in TASKS}
        speed = {"samples_per_second": 576.4 + step}
        lines.append({"step": step, "loss": losses["loss/vqa"], **losses, **speed})
        if step % 100 == 0:
            scores = {task: {"first": 0.9, metric: step / 400} for task, metric in TASKS.items()}
            lines.append({"step": step, "scores": scores})
    write_lines(folder / "metrics.jsonl", lines)
    write_scores(folder, STORED)
    captions = [f"caption {index}" for index in range(7)]
    write_gallery(
        folder,
        [
            (GalleryEntry("vqa", "q1", [], NASTY, "red", "red", True, 0.934),
             [picture((200, 10, 20))]),
            (GalleryEntry("vqa", "q2", [], "What?", "red", "blue", False), [picture((9, 9, 9))]),
            (GalleryEntry("nlvr", "n1", [], "Both.", "true", "true", True),
             [picture((10, 200, 20)), picture((10, 20, 200))]),
            (GalleryEntry("caption", "c1", [], "caption: ", captions, "", None),
             [picture((250, 250, 0))]),
        ],
    )  # fmt: skip
    (folder / "recipe.yaml").write_text("output: <runs>\nseed: 0\n", "utf-8")
    return folder
