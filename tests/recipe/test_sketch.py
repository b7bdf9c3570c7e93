"""Mistakes that are found before any library is imported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.toys.files import ROOT
from vlds.recipe.choices import SketchedChoice, concrete_classes, field_types
from vlds.recipe.config import Recipe, parse_recipe
from vlds.recipe.parse import named_first
from vlds.recipe.sketch import RECIPE, SWEEP, check_words, sketched
from vlds.report.sweep import Sweep
from vlds.runtime.artifact_files import DESCRIPTION
from vlds.runtime.checks import Choice

DEMO = "recipes/demo.yaml"
BROKEN = "output: x\nmodel: {class_path: JointSeq2Seq\ntasks: [\n"
WHOLE = """
output: new
model: {class_path: ImageTextToText, init_args: {path: model}}
methods: {lora: LoRA}
tasks: {vqa: {class_path: VQA, init_args: {train: [shards/train], evaluate: [shards/val]}}}
training: {steps: 3, deepspeed: ds_configs/zero2.json}
"""
"""A recipe whose data are there."""
MISTAKES = (
    ["missing.yaml"],
    ["broken.yaml"],
    ["own.yaml"],
    [DEMO, "--lr", "3"],
    [DEMO, "--batch_size", "3"],
    [DEMO, "--optimizer.learning_rate", "9" * 400],
    [DEMO, "--training.step", "3"],
    [DEMO, "--methods.adapter.redution", "3"],
    [DEMO, "--methods.adapter", "Adaptr"],
    [DEMO, "--model.backbone.pth", "x"],
    [DEMO, "--tasks.vqa.decoding.beams", "3"],
    [DEMO, "--rank", "3"],
    [DEMO, "--data.errors.max_in_row", "3"],
    [DEMO, "--training.fp16"],
    [DEMO, "--training.steps", "many"],
    [DEMO, "--training.epochs", "-1"],
    [DEMO, "--training.precision", "fp8"],
    [DEMO, "--optimizer.betas", "[0.9, high]"],
    [DEMO, "--tasks.vqa.train", "shards"],
    ["values.yaml"],
    [],
)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with recipes that have mistakes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.yaml").write_text(BROKEN)
    (tmp_path / "own.yaml").write_text("base: recipes/demo.yaml\nbatch_size: 3\n")
    (tmp_path / "values.yaml").write_text("base: recipes/demo.yaml\ntraining: {epochs: sixteen}\n")
    (tmp_path / "run" / "state" / "step-00000001").mkdir(parents=True)
    for part in ("train", "val"):
        (tmp_path / "shards" / part).mkdir(parents=True)
    (tmp_path / "whole.yaml").write_text(WHOLE)
    (tmp_path / "asked").mkdir()
    (tmp_path / "asked" / DESCRIPTION).write_text("{}")
    return tmp_path


def in_words(hint: Any) -> str:
    """A type without the modules of its classes."""
    return re.sub(r"\b(\w+\.)+(?=\w)|<class '|'>", "", str(hint))


def test_a_sketch_has_the_fields_and_types_of_the_real_class() -> None:
    for options, real in ((RECIPE, Recipe), (SWEEP, Sweep)):
        pairs: list[tuple[type, type]] = [(sketched(options), real)]
        ours, theirs = concrete_classes(SketchedChoice), concrete_classes(Choice)
        theirs = {name: cls for name, cls in theirs.items() if cls.__module__.startswith("vlds.")}
        assert ours.keys() == theirs.keys()
        assert len(ours) > 40
        pairs += [(ours[name], theirs[name]) for name in ours]
        for sketch, cls in pairs:
            expected = [(name, in_words(hint)) for name, hint in field_types(cls).items()]
            found = [(name, in_words(hint)) for name, hint in field_types(sketch).items()]
            assert found == expected, cls


@pytest.mark.parametrize("words", MISTAKES, ids=" ".join)
def test_a_mistake_has_the_message_of_the_whole_check(words: list[str], desk: Path) -> None:
    with pytest.raises(ValueError, match=r".") as expected:
        parse_recipe(words)
    # Other tests bring classes of their own, which are then among those to choose from.
    message, _, _ = str(expected.value).partition("choose from")
    with pytest.raises(ValueError, match=re.escape(message)):
        check_words(named_first(words, "vlds train"))


def test_all_recipes_of_vlds_pass() -> None:
    for file in sorted((ROOT / "recipes").rglob("*.yaml")):
        check_words(["--config", str(file)])
    for file in sorted((ROOT / "sweeps").glob("*.yaml")):
        check_words(["--config", str(file)], SWEEP)


def test_a_class_of_a_users_module_is_left_to_the_run(desk: Path) -> None:
    """Its module may import anything, so it is not imported to look for mistakes."""
    (desk / "mine.py").write_text("raise SystemExit('imported')")
    check_words(["--config", DEMO, "--methods.adapter", "mine.Method", "--methods.adapter.x", "3"])
    assert "mine" not in sys.modules


COMMANDS = (
    ["trian", DEMO],
    *(["train", *words] for words in MISTAKES),
    ["train", DEMO, "--ranks", "none"],
    ["train", DEMO],  # its data are not in the working folder
    ["train", DEMO, "--training.deepspeed", "zero7.json"],
    ["train", "whole.yaml", "--tasks.vqa.train", "[missing]"],
    ["train", "whole.yaml", "--output", "run"],
    ["train", "whole.yaml", "--resume"],
    ["describe", DEMO, "--lr", "3"],
    ["plan", "missing.yaml"],
    ["features", "--config", "missing.yaml", "--data", "x", "--out", "y"],
    ["importance", "--config", "missing.yaml", "--out", "y"],
    ["evaluate", "--rnu", "x"],
    ["evaluate", "missing"],
    ["evaluate", "missing", "--task", "VQA"],
    ["evaluate", "asked", "--data", "shards/train", "vqa=missing"],
    ["predict", "missing", "--image", "x.jpg"],
    ["predict", "asked", "--image", "missing.jpg"],
    ["predict", "--imgae", "x.jpg"],
    ["report", "missing"],
    ["report", "missing", "--fromat", "md"],
    ["compare", "missing"],
    ["compare", "missing.yaml"],
    ["sweep", "missing.yaml"],
    ["sweep", "sweeps/demo.yaml", "--seds", "[0]"],
    ["convert", "hf", "--run", "missing", "--out", "x"],
    ["demo", "--rank", "two"],
    ["init", "--data", "missing.csv"],
    ["init", "--dat", "missing.csv", "--model", "missing"],
)
NAMED = (["--help"], ["jsnol"], ["--hepl"])
"""Command lines of data_prep that name no command of it."""
DATA_PREP = (
    ["jsonl", "--help"],
    ["own", "--data", "missing.csv", "--out", "x"],
    ["jsonl", "--annotatons", "x"],
    ["jsonl", "--annotations", "missing.csv", "--images", ".", "--out", "x", "--task", "vqa"],
    ["imagefolder", "--images", "missing", "--out", "x"],
    ["stats", "missing"],
)
PROGRAM = """
import sys
from {module} import main
for words in {commands}:
    try:
        code = main(words)
    except SystemExit as end:
        code = end.code
    heavy = sorted({heavy} & sys.modules.keys())
    print(code, words, *heavy, flush=True)
"""


HEAVY = ("torch", "transformers", "deepspeed")


@pytest.mark.parametrize(
    ("module", "commands", "heavy"),
    [
        ("vlds.cli.main", COMMANDS, HEAVY),
        ("data_prep.cli", DATA_PREP, HEAVY),
        ("data_prep.cli", NAMED, (*HEAVY, "numpy", "PIL", "fsspec", "data_prep.command")),
    ],
)
def test_a_mistake_waits_for_no_library(
    module: str, commands: Sequence[list[str]], heavy: Sequence[str], desk: Path
) -> None:
    program = PROGRAM.format(module=module, commands=[*commands], heavy=set(heavy))
    # In a checkout, data_prep lies at its top.
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    lines = done.stdout.splitlines()
    ends = {str(words): 0 if "--help" in words else 2 for words in commands}
    expected = [f"{ends[str(words)]} {words}" for words in commands]
    assert [line for line in lines if line in expected] == expected, done.stdout + done.stderr
