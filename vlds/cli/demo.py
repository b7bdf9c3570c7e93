"""The demo: every part of vlds once on drawn pictures, with the commands that a user would type.

data demo -> train demo (an adapter on the frozen backbone, ZeRO-3)
  -> train demo_control (norms and visual embedding alone, ZeRO-2) -> convert hf -> report

The frozen backbone is shipped. `--whole` makes it: it draws the home world too, and
-> train demo_pretrain (Full, ZeRO-2) -> convert hf stand in front.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from vlds.cli.supervisor import Stage, StageError, as_typed, run_stage, vlds
from vlds.data.shards.info import DATASET_FILE
from vlds.evaluation.result import SCORES, Scored, weights_of, write_scores
from vlds.report.collect import collect
from vlds.report.page import write_report
from vlds.report.read import GalleryEntry, read_run
from vlds.report.run_tables import summary_table
from vlds.report.tables import terminal_table
from vlds.runtime.files import read_text, write_whole
from vlds.runtime.json_files import sha256
from vlds.runtime.process import Interrupted, find
from vlds.runtime.rank_environment import SAME_BITS
from vlds.runtime.terminal import bytes_text, open_console, tell

RECIPES = ("demo_pretrain", "demo", "demo_control")
FOLDER = "runs/demo"
"""Where the shipped recipes write; replaced by --out."""
SHIPPED = "recipes/backbones/demo"
"""The backbone that `--whole` makes with its default seed and ranks."""
TO_BACKBONE = 3
"""Stages of `--whole` until the frozen backbone is there."""


def run_demo(
    out: Path, seed: int, ranks: int, *, whole: bool = False, only_backbone: bool = False
) -> int:
    """Run the stages whose products are missing below `out`, then show the results; `whole`: make
    the frozen backbone too; `only_backbone`: nothing else. Returns the exit code.

    Errors: ValueError if `out` has the shipped backbone, and it is to be made.
    """
    started = time.monotonic()
    whole |= only_backbone
    # The shipped recipes write below runs/demo; copies of them write below `out`.
    adapters, backbone, recipes = out / "adapters", out / "backbone", {}
    if whole and backbone.exists() and not (out / "pretrain").exists():
        raise ValueError(f"--out: {backbone} is the shipped backbone; name another folder")
    for name in RECIPES:
        recipes[name] = out / "recipes" / f"{name}.yaml"
        text = read_text(find(f"recipes/{name}.yaml"))
        write_whole(recipes[name], text.replace(FOLDER, str(out)))
    if not (whole or backbone.exists()):
        shutil.copytree(find(SHIPPED), out / "copy", dirs_exist_ok=True)
        (out / "copy").rename(backbone)  # whole, or not there
        tell(f"the frozen backbone is shipped with vlds: {backbone}; --whole makes it")
    stages = stages_of(out, recipes, seed, ranks, whole=whole)
    stages = stages[:TO_BACKBONE] if only_backbone else stages
    # The demo is small enough for a CPU, and two ranks need two GPUs otherwise. Ranks of a
    # `reproducible` run that find its variables need not start again.
    variables = {"DS_ACCELERATOR": "cpu", **SAME_BITS}
    try:
        for number, stage in enumerate(stages, 1):
            if not stage.product.exists():
                run_stage(stage, f"{number} of {len(stages)}", variables)
    except StageError as error:
        cure = "fix what it reported above, then start again"
        tell(f"vlds demo: {error}; {cure}", error=True)
        return 1
    except Interrupted as error:
        tell(f"vlds demo: ended by {error.signal_name}; start it again to continue", error=True)
        return error.exit_code
    if whole and seed == 0:
        tell(beside_shipped(backbone))
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


def beside_shipped(backbone: Path) -> str:
    """Whether a backbone that was made with the default seed is the shipped one."""
    files = {path.name: path for path in find(SHIPPED).iterdir()}
    other = [name for name, file in files.items() if sha256(file) != sha256(backbone / name)]
    if not other:
        return f"{backbone} is the shipped backbone, byte for byte"
    return (
        f"{backbone} is not the shipped backbone: {', '.join(sorted(other))} differ. Another "
        "processor, number of ranks or version of torch rounds differently."
    )


def stages_of(
    out: Path, recipes: Mapping[str, Path], seed: int, ranks: int, *, whole: bool
) -> list[Stage]:
    """All commands in order; `whole`: with those that make the backbone."""
    data, backbone, adapters = out / "data", out / "backbone", out / "adapters"
    draw = vlds("data", "demo", "--out", data, "--seed", seed)

    def train(name: str) -> list[str]:
        # A run that was stopped continues.
        return vlds("train", recipes[name], "--seed", seed, "--ranks", ranks, "--resume", "auto")

    made = [
        Stage("draw two worlds of shapes, and pack them", data / "spiece.model", draw),
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
    ]
    shifted = Stage(
        "draw the shifted world of shapes, and pack it",
        data / "shards" / "shifted" / "coco-val" / DATASET_FILE,
        [*draw, "--world", "shifted"],
    )
    return [
        *(made if whole else [shifted]),
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
    size = "  ".join(f"{name} {bytes_text(value)}" for name, value in facts.bytes_per_rank.items())
    speed = facts.samples_per_second.get("training", 0)
    console.print(
        f"trainable {facts.trainable['trainable']:,} of {facts.trainable['total']:,} weights "
        f"({facts.trainable['percent']:.2f} %)\na rank holds: {size}\n"
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
