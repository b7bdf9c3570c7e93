"""The demo: every part of vlds once on drawn pictures, with the commands that a user would type.

data demo -> train demo_pretrain (Full, ZeRO-2) -> convert hf (it is the frozen backbone now)
  -> train demo (an adapter, ZeRO-3), train demo_control (norms and visual embedding alone)
  -> convert hf -> report
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from vlds.cli.supervisor import Stage, StageError, as_typed, run_stage, vlds
from vlds.evaluation.result import SCORES, Scored, weights_of, write_scores
from vlds.report.collect import collect
from vlds.report.page import write_report
from vlds.report.read import GalleryEntry, read_run
from vlds.report.run_tables import summary_table
from vlds.report.tables import terminal_table
from vlds.runtime.files import read_text, write_whole
from vlds.runtime.process import Interrupted, find
from vlds.runtime.terminal import open_console, tell

RECIPES = ("demo_pretrain", "demo", "demo_control")
FOLDER = "runs/demo"
"""Where the shipped recipes write; replaced by --out."""
TO_BACKBONE = 3
"""Stages until the frozen backbone is there."""


def run_demo(out: Path, seed: int, ranks: int, *, only_backbone: bool = False) -> int:
    """Run the stages whose products are missing below `out`, then show the results;
    `only_backbone`: no further than the frozen backbone. Returns the exit code."""
    started = time.monotonic()
    # The shipped recipes write below runs/demo; copies of them write below `out`.
    adapters, recipes = out / "adapters", {}
    for name in RECIPES:
        recipes[name] = out / "recipes" / f"{name}.yaml"
        text = read_text(find(f"recipes/{name}.yaml"))
        write_whole(recipes[name], text.replace(FOLDER, str(out)))
    stages = stages_of(out, recipes, seed, ranks)
    stages = stages[:TO_BACKBONE] if only_backbone else stages
    try:
        for number, stage in enumerate(stages, 1):
            if not stage.product.exists():
                # The demo is small enough for a CPU, and two ranks need two GPUs otherwise.
                run_stage(stage, f"{number} of {len(stages)}", {"DS_ACCELERATOR": "cpu"})
    except StageError as error:
        cure = "fix what it reported above, then start again"
        tell(f"vlds demo: {error}; {cure}", error=True)
        return 1
    except Interrupted as error:
        tell(f"vlds demo: ended by {error.signal_name}; start it again to continue", error=True)
        return error.exit_code
    if only_backbone:
        return 0
    # The adapters' scores, beside those of the most frequent answer, the frozen model and the
    # control.
    (adapters / SCORES).unlink(missing_ok=True)  # `collect` would read an earlier one
    # Without intervals, which the terminal does not show.
    tuned, control = collect([adapters, out / "control"], resamples=0).runs.values()
    scored, weights = {}, weights_of(adapters)
    for name, entry in tuned.scores.tasks.items():
        compared = dict(entry.by_column)
        own = compared.pop(tuned.scores.columns[-1])
        compared["norms + visual embedding"] = control.results[name].scores
        scored[name] = Scored(entry.data, entry.examples, own, entry.headline, compared, weights)
    write_scores(adapters, scored)
    page = write_report([read_run(adapters)], adapters)
    show(out, page, time.monotonic() - started)
    return 0


def stages_of(out: Path, recipes: Mapping[str, Path], seed: int, ranks: int) -> list[Stage]:
    """All commands in order."""
    backbone, adapters = out / "backbone", out / "adapters"

    def train(name: str) -> list[str]:
        # A run that was stopped continues.
        return vlds("train", recipes[name], "--seed", seed, "--ranks", ranks, "--resume", "auto")

    return [
        Stage(
            "draw two worlds of shapes, and pack them",
            out / "data" / "spiece.model",
            vlds("data", "demo", "--out", out / "data", "--seed", seed),
        ),
        Stage(
            "pretrain a tiny model on the home world",
            out / "pretrain" / "artifact",
            train("demo_pretrain"),
        ),
        Stage(
            "make it the frozen backbone",
            backbone,
            vlds("convert", "hf", "--run", out / "pretrain", "--out", backbone),
        ),
        Stage(
            "tune an adapter on the shifted world",
            adapters / "artifact",
            train("demo"),
        ),
        Stage(
            "tune only norms and visual embedding, for comparison",
            out / "control" / "artifact",
            train("demo_control"),
        ),
        Stage(
            "convert the tuned model for Hugging Face",
            out / "tuned",
            vlds("convert", "hf", "--run", adapters, "--out", out / "tuned"),
        ),
    ]


def show(out: Path, page: Path, seconds: float) -> None:
    """Print scores, size, speed, and where the outputs are."""
    console = open_console()
    run = read_run(out / "adapters")
    console.rule("[bold]scores on unseen pictures of the shifted world", align="left")
    tasks = run.scores.tasks.items()
    data = ", ".join(f"{name}: {task.data_name}" for name, task in tasks if task.data_name)
    console.print(terminal_table(summary_table(run.scores), f"data: {data}" if data else ""))
    facts = run.scores
    size = "  ".join(f"{name} {value:,}" for name, value in facts.bytes_per_rank.items())
    speed = facts.samples_per_second.get("training", 0)
    console.print(
        f"trainable {facts.trainable['trainable']:,} of {facts.trainable['total']:,} weights "
        f"({facts.trainable['percent']:.2f} %)\nbytes per rank: {size}\n"
        f"training {speed:,.0f} examples/s; in total {seconds:.0f} s",
    )
    tell(f"report: {page}")
    tell(f"the tuned model: {out / 'tuned'}")
    if right := first_right_caption(run.gallery):
        tell(f"to ask it (answer: {right.prediction}):\n{as_typed(asked_about(right, run.folder))}")


def asked_about(entry: GalleryEntry, run: Path) -> list[str]:
    """The command that asks a run for its sample's caption."""
    picture = run / entry.images[0]
    return vlds("predict", "--run", run, "--task", "caption", "--image", picture)


def first_right_caption(gallery: Sequence[GalleryEntry]) -> GalleryEntry | None:
    """The first sample picture whose predicted caption is one of its references."""
    described = (entry for entry in gallery if entry.task == "caption" and entry.images)
    return next((entry for entry in described if entry.prediction in entry.reference), None)
