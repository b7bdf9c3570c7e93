"""One run: a method that learns some pictures of each class."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from few_shot.model import write_model
from few_shot.rows import ROWS
from vlds.evaluation.result import read_scores
from vlds.runtime.json_files import read_metric_lines

DATA, OUT = Path("runs/demo/data"), Path("runs/clip_demo")


@dataclass(frozen=True)
class Trial:
    """What one run trains."""

    name: str
    """Row."""
    shots: int
    seed: int
    half: str | None = None
    """Learn the figures in one half of the colors alone."""
    rate: float | None = None
    """Learning rate instead of the row's."""

    @property
    def output(self) -> Path:
        """Its folder."""
        words = self.name.replace(",", "").replace(" ", "_")
        kept = [words, str(self.shots), *([self.half] if self.half else [])]
        kept += [f"{self.rate:g}"] if self.rate else []
        return OUT / str(self.seed) / "_".join(kept)


def train(trial: Trial) -> list[float]:
    """Accuracies before and after training; a finished run is not repeated."""
    row, clip = ROWS[trial.name], pretrain(trial.seed)
    recipe = yaml.safe_load(Path("recipes/demo_few_shot.yaml").read_text(encoding="utf-8"))
    task = recipe["tasks"].pop("figures")
    fields = task["init_args"]
    shards = DATA / "shards" / "classes"
    fields["train"] = [str(shards / "figures-train")]
    fields["evaluate"] = [str(shards / "figures-test")]
    fields |= {"shots": trial.shots, "head": row.head or fields["head"], "half": trial.half}
    recipe["tasks"] = {"classes": task}
    recipe |= {"output": str(trial.output), "seed": trial.seed, "methods": dict(row.methods)}
    rates = {
        "learning_rate": trial.rate or row.learning_rate,
        "eps": row.eps,
        "weight_decay": row.decay,
    }
    recipe["optimizer"] |= rates
    recipe["training"]["steps"] = row.steps
    recipe["model"]["init_args"]["path"] = str(clip)
    file = trial.output.with_name(f"{trial.output.name}.yaml")
    file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    if not (trial.output / "artifact").exists():
        run("vlds", "train", file)
    lines = [line for _, line in read_metric_lines(trial.output / "metrics.jsonl").lines]
    return [line["scores"]["classes"]["accuracy"] for line in lines if "scores" in line]


def on_new_classes(trial: Trial) -> float:
    """Accuracy of a trained run on the other half of the classes."""
    out = trial.output / "new"
    if not out.exists():
        half = ("--tasks.classes.half", "new")
        run("vlds", "evaluate", "--run", trial.output, *half, "--out", out)
    return read_scores(out)["classes"].scores["accuracy"]


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
