"""The sweeps that vlds ships: they resolve, and have the settings of the paper's tables."""

from __future__ import annotations

import re
import statistics
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from data_prep.classes.few_shot import FEW_SHOT_SETS
from data_prep.cli import build_parser
from vlds.cli.sweep_work import RunPart, preparation_parts
from vlds.data.order.mixed_order import steps_in
from vlds.models.heads import TextHead
from vlds.report.sweep import Sweep, SweepRun, preparations, read_sweep, runs_of
from vlds.runtime.process import shipped

FROM_DOWNLOADS = "sweeps/vl_adapter_image_bart_features.yaml"
SWEEPS = [
    name
    for name in shipped("sweeps")
    if name != FROM_DOWNLOADS and name.startswith(("sweeps/vl_", "sweeps/lst"))
]
SEEDS = {"vl_adapter": [9595, 9596, 9597], "lst": [9595, 9596, 9597], "vl_pet": [42, 43, 9595]}
SIZES = {
    "image": {"vqa": 605_102, "gqa": 1_075_062, "nlvr": 86_373, "caption": 566_747},
    "video": {"tvqa": 122_039, "how2qa": 34_187, "tvc": 173_206, "yc2c": 10_337},
}
"""Training examples of the official data."""
BATCHES = {
    "image_bart": [500, 833, 166, 416],
    "image_t5": [300, 500, 100, 250],
    "video_bart": [50] * 4,
    "video_t5": [30] * 4,
    "video_t5, single prompt": [300] * 4,
}
"""Batch size of each task in the original scripts."""
EPOCHS = {"image": 20, "video": 7}
LONGER = 20
"""Epochs of VL-PET on videos."""
STEPS = {
    "image_bart": 87_720, "image_t5": 146_000, "video_bart": 47_579, "video_t5": 79_289,
    "video_t5, single prompt": 7_938,
}  # fmt: skip
TESTS = {
    "image": {
        "vqa": ["shards/vqav2-karpathy-test"],
        "gqa": ["shards/gqa-testdev"],
        "nlvr": ["shards/nlvr2-test1"],
        "caption": ["shards/coco-test"],
    },
    "video": {task: [f"shards/{task}-val"] for task in SIZES["video"]},
}
"""Data whose scores the tables show; the labels of the video tasks' test data are not public."""
METRICS = {
    "image": {
        "vqa": "vqa_accuracy_legacy", "gqa": "accuracy", "nlvr": "accuracy", "caption": "CIDEr",
    },
    "video": {"tvqa": "accuracy", "how2qa": "accuracy", "tvc": "CIDEr", "yc2c": "CIDEr"},
}  # fmt: skip
RATES = {
    "image_bart": {"full": 1e-4, "multiple adapters": 3e-4, "half-shared": 3e-4, "": 1e-3},
    "image_bart_clip": {"": 1e-4},
    "image_t5": {
        "full": 1e-4, "multiple adapters": 3e-4, "half-shared": 3e-4, "single adapter": 3e-4,
        "adapter": 3e-4, "single LoRA": 3e-4, "LoRA": 3e-4, "VL-PET": 3e-4, "BitFit": 3e-3,
        "single prompt": 3e-3, "prompt": 3e-3, "LST": 3e-3, "": 1e-3,
    },
    "video_bart": {"full": 3e-5, "VL-PET": 7e-4, "": 3e-4},
    "video_t5": {"full": 3e-5, "": 3e-4},
}  # fmt: skip
"""Setting, or one sweep of it -> beginning of a row -> learning rate; the first that fits."""
NUM_CLASSES = {
    "Caltech101": 100, "DTD": 47, "EuroSAT": 10, "FGVCAircraft": 100, "Flowers102": 102,
    "Food101": 101, "ImageNet": 1000, "OxfordPets": 37, "StanfordCars": 196, "SUN397": 397,
    "UCF101": 101,
}  # fmt: skip
TIP_EPOCHS = {"EuroSAT": 100}
SIMNL_EPOCHS = {"ImageNet": 20, "DTD": 20, "Flowers102": 60, "EuroSAT": 200}
"""Epochs of the codes' configs; Tip-Adapter's others have 20, SimNL's 30."""


@cache
def resolved(name: str) -> tuple[Sweep, list[SweepRun]]:
    """A sweep and its runs."""
    sweep = read_sweep([name])
    return sweep, runs_of(sweep)


def setting_of(name: str) -> tuple[str, str, str, str]:
    """Paper, kind of data, the setting (image_bart, ...), and the setting with what follows it."""
    match = re.match(r"sweeps/(vl_adapter|vl_pet|lst)_(((image|video)_(?:bart|t5))\w*)", name)
    assert match is not None
    return match[1], match[4], match[3], match[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEEPS)
def test_every_recipe_has_the_settings_of_the_paper(name: str) -> None:
    sweep, runs = resolved(name)
    paper, kind, setting, whole = setting_of(name)
    assert sweep.seeds == SEEDS[paper]
    assert len(runs) == 3 * len(sweep.recipes)
    assert sweep.scores == {task: METRICS[kind][task] for task in runs[0].recipe.tasks}
    for run in runs:
        recipe, tasks = run.recipe, run.recipe.tasks
        assert recipe.seed == run.seed
        is_longer = kind == "video" and run.row.startswith("VL-PET")
        assert recipe.training.epochs == (LONGER if is_longer else EPOCHS[kind])
        assert recipe.training.precision == "fp32"
        batches = recipe.data.batch_sizes([task.batch_size for task in tasks.values()])
        own = f"{setting}, {run.row}"
        expected = dict(zip(SIZES[kind], BATCHES.get(own, BATCHES[setting]), strict=True))
        assert batches == [expected[task] for task in tasks]
        if len(tasks) > 1:
            sizes = list(SIZES[kind].values())
            steps = steps_in(EPOCHS[kind], sizes, recipe.data.global_batch_size, batches)
            assert steps == STEPS.get(own, STEPS[setting])
        for task in tasks:
            assert tasks[task].data_of(sweep.split) == TESTS[kind][task]
        optimizer = recipe.optimizer
        assert (optimizer.warmup_ratio, optimizer.clip_norm) == (0.1, 5.0)
        assert optimizer.weight_decay_groups == "vl_adapter"
        rates = RATES.get(whole, RATES[setting])
        rate = next(rate for start, rate in rates.items() if run.row.startswith(start))
        assert optimizer.learning_rate == rate
        assert optimizer.weight_decay == (0.03 if run.row == "LST" else 0.01)


@pytest.mark.slow
def test_the_sweep_from_downloads_makes_the_data_that_it_reads() -> None:
    """Its rows are those of the paper's table, with features in place of pictures."""
    sweep, runs = resolved(FROM_DOWNLOADS)
    _, plain = resolved("sweeps/vl_adapter_image_bart.yaml")
    made = set()
    for step in preparations(sweep):
        program, command, *words = step.command
        assert program == "vlds"
        assert step.product.name == "dataset.json"
        if command == "data":
            out = Path(build_parser().parse_args(words).out)
        else:
            options = dict(zip(words[::2], words[1::2], strict=True))
            assert command == "features"
            assert options["--data"] in made
            assert options["--config"] == "recipes/vl_adapter/bart_image.yaml"
            out = Path(options["--out"])
        assert step.product.parent == out
        made.add(str(out))
    for run, other in zip(runs, plain, strict=True):
        computed = other.recipe.encoder.geometry
        assert run.recipe.encoder.geometry == replace(computed, image=None)
        for name, task in run.recipe.tasks.items():
            for split in ("train", "evaluate", "test"):
                assert set(task.data_of(split)) <= made  # type: ignore[arg-type]
            folders = [path.replace("features/", "shards/") for path in task.train]
            assert folders == list(other.recipe.tasks[name].train)
        assert (run.recipe.methods, run.recipe.optimizer) == (
            other.recipe.methods, other.recipe.optimizer,
        )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped("sweeps"))
def test_every_sweep_resolves(name: str) -> None:
    """Into recipes with each of its seeds, and parts that come before them."""
    sweep, runs = resolved(name)
    assert {run.seed for run in runs} == set(sweep.seeds)
    assert all(part.name for part in preparation_parts(sweep))


@pytest.mark.parametrize("name", SWEEPS)
def test_published_values_fit_each_other(name: str) -> None:
    """The average is that of four scores in percent, CIDEr times 100, within rounding."""
    sweep = read_sweep([name])
    for row, values in sweep.published.items():
        scores = [values[task] for task in sweep.scores if task in values]
        assert len(scores) in (0, 4), row
        if scores:
            # VL-Adapter cuts the averages of its video table and rounds the others. VL-PET has two
            # digits.
            apart = 0.0101 if "vl_pet" in name else 0.0751
            assert values["average"] == pytest.approx(statistics.mean(scores), abs=apart), row


def test_the_rows_with_a_pretrained_backbone_are_those_of_the_table_otherwise() -> None:
    """Pre-training has no boxes: its three tasks, CLIP's cells, and a norm for each part."""
    sweep, runs = resolved("sweeps/vl_adapter_image_bart_pretrained.yaml")
    table = {run.row: run.recipe for run in resolved("sweeps/vl_adapter_image_bart.yaml")[1]}
    pretraining, *_ = preparation_parts(sweep)
    assert isinstance(pretraining, RunPart)
    recipe = pretraining.run.recipe
    assert list(recipe.tasks) == ["lm", "itm", "vqa", "gqa", "visual7w"]
    for run in runs:
        plain = table[run.row]
        assert run.recipe.encoder.geometry == recipe.encoder.geometry == plain.encoder.geometry
        assert (run.recipe.methods, run.recipe.optimizer, run.recipe.training) == (
            plain.methods, plain.optimizer, plain.training,
        )  # fmt: skip
        visual = run.recipe.model.visual_embedding  # type: ignore[attr-defined]
        backbone = "runs/pretrain/vl_bart_clip_backbone"
        assert visual.weights == f"{backbone}/visual_embedding.safetensors"
        assert visual.norm == recipe.model.visual_embedding.norm  # type: ignore[attr-defined]
        assert run.recipe.model.backbone.path == backbone  # type: ignore[attr-defined]


def test_the_sweep_of_few_shots_has_the_settings_of_the_codes() -> None:
    """Three methods on each data set of data_prep, in the steps of 16 shots in batches of 256."""
    sweep, runs = resolved("sweeps/few_shot.yaml")
    methods, shots = ("Tip-Adapter-F", "SimNL", "linear probe"), (1, 2, 4, 8, 16)
    titles = [each.title for each in FEW_SHOT_SETS]
    rows = {f"{m}, {title}, shots {n}" for m in methods for title in titles for n in shots}
    assert {run.row for run in runs} == rows
    assert len(runs) == 3 * len(rows)
    assert sweep.published.keys() == {row for row in rows if row.startswith("Tip")}
    commands = {each.title: each.command for each in FEW_SHOT_SETS}
    for run in runs:
        method, title, words = run.row.split(", ")
        recipe, (task,) = run.recipe, run.recipe.tasks.values()
        assert words == f"shots {task.num_shots}"
        assert task.train == [f"shards/{commands[title]}-train"]
        tested = "val" if title == "ImageNet" else "test"
        assert task.data_of(sweep.split) == [f"shards/{commands[title]}-{tested}"]
        epochs = SIMNL_EPOCHS.get(title, 30) if method == "SimNL" else TIP_EPOCHS.get(title, 20)
        assert recipe.training.steps == epochs * -(-16 * NUM_CLASSES[title] // 256)
        assert recipe.data.global_batch_size == 256
        assert list(recipe.methods) == {"SimNL": ["simnl"], "Tip-Adapter-F": ["tip"]}.get(
            method, []
        )
        if isinstance(task.head, TextHead):
            assert ["{}" in text for text in task.head.templates] == [True] * (
                7 if title == "ImageNet" else 1
            )
