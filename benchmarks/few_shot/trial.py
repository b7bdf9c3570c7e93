"""One run: a method that learns some pictures of each class."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from few_shot.model import write_model
from few_shot.rows import ROWS, Row
from vlds.evaluation.result import read_scores
from vlds.runtime.json_files import read_metric_lines

DATA, OUT = Path("runs/demo/data"), Path("runs/clip_demo")
SCORES = Path("benchmarks/clip_demo.jsonl")
"""What each run scored, a line for each: runs that it has are not repeated."""


@dataclass(frozen=True)
class Trial:
    """What one run trains."""

    name: str
    """Of its row."""
    shots: int
    seed: int
    half: str | None = None
    """Learn the figures in one half of the colors alone."""
    rate: float | None = None
    """Learning rate instead of the row's."""

    @property
    def row(self) -> Row:
        """Its row, with its rate."""
        row = ROWS[self.name]
        return replace(row, learning_rate=self.rate or row.learning_rate)

    @property
    def key(self) -> Mapping[str, Any]:
        """What tells it from others."""
        kept = {"row": self.name, "seed": self.seed, "shots": self.shots, "half": self.half}
        return kept | {"rate": self.row.learning_rate, "steps": self.row.steps}

    @property
    def output(self) -> Path:
        """Its folder."""
        kept = [self.name.replace(",", "").replace(" ", "_"), str(self.shots)]
        kept += [self.half] if self.half else []
        return OUT / str(self.seed) / "_".join([*kept, f"{self.row.learning_rate:g}"])


def train(trial: Trial) -> Mapping[str, float]:
    """Accuracies `before` and `after` training and, of a run on one half of the classes, on the
    classes of the other, `other`."""
    known = SCORES.read_text(encoding="utf-8").splitlines() if SCORES.exists() else []
    for line in map(json.loads, known):
        if {**line, **trial.key} == line:
            accuracies: Mapping[str, float] = line["accuracy"]
            return accuracies
    recipe = yaml.safe_load(Path("recipes/demo_few_shot.yaml").read_text(encoding="utf-8"))
    row, task = trial.row, recipe["tasks"].pop("figures")
    fields = task["init_args"]
    shards = DATA / "shards" / "classes"
    fields["train"] = [str(shards / "figures-train")]
    fields["evaluate"] = [str(shards / "figures-test")]
    fields |= {"shots": trial.shots, "head": row.head or fields["head"], "half": trial.half}
    recipe["tasks"] = {"classes": task}
    recipe |= {"output": str(trial.output), "seed": trial.seed, "methods": dict(row.methods)}
    rates = {"learning_rate": row.learning_rate, "eps": row.eps, "weight_decay": row.decay}
    recipe["optimizer"] |= rates
    recipe["training"]["steps"] = row.steps
    recipe["model"]["init_args"]["path"] = str(pretrain(trial.seed))
    file = trial.output.with_name(f"{trial.output.name}.yaml")
    file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    shutil.rmtree(trial.output, ignore_errors=True)
    run("vlds", "train", file)
    lines = [line for _, line in read_metric_lines(trial.output / "metrics.jsonl").lines]
    scored = [line["scores"]["classes"]["accuracy"] for line in lines if "scores" in line]
    accuracy = {"before": scored[0], "after": scored[-1]}
    if trial.half:
        out, other = trial.output / "other", {"base": "new", "new": "base"}[trial.half]
        words = ("--tasks.classes.half", other, "--out", out)
        run("vlds", "evaluate", "--run", trial.output, *words)
        accuracy["other"] = read_scores(out)["classes"].scores["accuracy"]
    with SCORES.open("a", encoding="utf-8") as lines_of_all:
        lines_of_all.write(json.dumps({**trial.key, "accuracy": accuracy}) + "\n")
    return accuracy


def pretrain(seed: int) -> Path:
    """The folder of a seed's CLIP."""
    if not (DATA / "spiece.model").exists():
        run("data_prep", "demo", "--out", DATA)
    if not (OUT / "model").exists():
        write_model(OUT / "model", DATA / "text.txt")
    clip, trained = OUT / str(seed) / "clip", OUT / str(seed) / "pretrain"
    if not (trained / "artifact").exists():
        run("vlds", "train", "recipes/demo_clip.yaml", "--seed", seed, "--output", trained)
    if not clip.exists():
        run("vlds", "convert", "hf", "--run", trained, "--out", clip)
    return clip


def run(module: str, *words: object) -> None:
    """Run a command; its own output goes to stderr."""
    command: list[Any] = [sys.executable, "-m", module, *map(str, words)]
    subprocess.run(command, check=True, stdout=sys.stderr)
