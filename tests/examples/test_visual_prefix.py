"""The kind of model on docs/add_a_model.md, taken from the page: one module outside of vlds that
trains, resumes, evaluates, and answers the same in another process."""

from __future__ import annotations

import importlib
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

from tests.toys.files import ROOT, read_lines
from tests.toys.rank_jobs import run_recipe
from tests.toys.rank_pool import RankPool
from tests.toys.resumed_runs import assert_same_run, half_a_run, losses
from tests.toys.saved_prefix import SavedPrefix
from tests.toys.trained_runs import convert
from tests.toys.world import SIZES, world_recipe
from vlds.artifact import load_run
from vlds.cli.main import run_command
from vlds.convert.verify import logits, probe
from vlds.models.build import build_shapes
from vlds.models.methods import LoRA
from vlds.models.vision import ConvNet
from vlds.recipe.config import Recipe, load_recipe, save_recipe
from vlds.schema import Decoding
from vlds.training.optimizer import parameter_groups

MODULE = "kind_of_the_page"
LONGEST = 80
"""Lines of a small kind; more would say that the base classes ask too much."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's code as a module that can be imported."""
    folder = tmp_path_factory.mktemp("page")
    text = (ROOT / "docs" / "add_a_model.md").read_text("utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(code.splitlines()) <= LONGEST
    (folder / f"{MODULE}.py").write_text(code, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def recipe(folder: Path, world: Path) -> Recipe:
    """The world's recipe with the page's kind, on a saved T5."""
    whole = world_recipe(world, folder / "whole", stage=3)
    tokenizer = whole.model.backbone.load_tokenizer()
    tokenizer.save_pretrained(folder / "t5")
    torch.manual_seed(8)
    sizes = {name: value for name, value in SIZES.items() if name != "model_type"}
    config = T5Config(**{**sizes, "vocab_size": len(tokenizer)})
    t5 = T5ForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in t5.parameters():
            parameter.normal_(std=0.4)  # so that its answers differ
    t5.save_pretrained(folder / "t5")
    kind = page_module(folder).VisualPrefix
    model = kind(path=str(folder / "t5"), vision=ConvNet(image_size=16, grid=2, widths=[4, 8, 8]))
    lora = LoRA(rank=2, train_biases=False)
    return replace(whole, model=model, methods={"lora": lora})


def page_module(folder: Path) -> ModuleType:
    """The page's module; saved recipes may name its classes once it is imported."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return importlib.import_module(MODULE)


def run_file(folder: Path, file: Path, resume: bool) -> int:
    """Train on a rank that finds the page's module; the exit code."""
    page_module(folder)
    return run_recipe(load_recipe(file), resume)


def logits_elsewhere(folder: Path, run: Path) -> Tensor:
    """Logits of a run that another process has loaded."""
    page_module(folder)
    return logits(load_run(run), "vqa", ())


def evaluate(folder: Path, run: Path, out: Path) -> int:
    """Evaluate a run as the command does, in a rank: it sets a rank's environment for good."""
    page_module(folder)
    return run_command(["evaluate", "--run", str(run), "--out", str(out)])


@pytest.fixture(scope="module")
def whole(recipe: Recipe, folder: Path, ranks2: RankPool) -> Path:
    """A run of two ranks under ZeRO-3."""
    save_recipe(recipe, folder / "whole.yaml")
    assert ranks2.run(run_file, folder, folder / "whole.yaml", False, timeout=120) == [0, 0]
    return Path(recipe.output)


@pytest.mark.slow
def test_it_learns_and_resumes(
    whole: Path, recipe: Recipe, folder: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    found = losses(whole)
    assert found[-1][1] < found[0][1]
    half = tmp_path / "half"
    half_a_run(whole, half)
    save_recipe(replace(recipe, output=str(half)), tmp_path / "half.yaml")
    assert ranks2.run(run_file, folder, tmp_path / "half.yaml", True, timeout=120) == [0, 0]
    assert_same_run(half, whole)


@pytest.mark.slow
def test_another_process_answers_the_same(whole: Path, folder: Path, ranks2: RankPool) -> None:
    run = load_run(whole)
    expected = logits(run, "vqa", ())
    assert expected.any()
    found = ranks2.run(logits_elsewhere, folder, whole)
    assert all(torch.equal(each, expected) for each in found)
    stored = load_file(whole / "artifact" / "weights.safetensors")
    assert all("lora" in name or name.startswith(("connector.", "vision.")) for name in stored)
    assert AutoTokenizer.from_pretrained(whole / "artifact/processor").get_vocab()


@pytest.mark.slow
def test_it_evaluates_with_every_decoding(
    whole: Path, folder: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    assert ranks2.run(evaluate, folder, whole, tmp_path / "out", timeout=120) == [0, 0]
    (file,) = (tmp_path / "out").rglob("vqa.jsonl")
    expected = read_lines(whole / "predictions/step-00000010/vqa.jsonl")
    found = [line["prediction"] for line in read_lines(file)]
    assert found == [line["prediction"] for line in expected]
    assert all(found)
    run = load_run(whole)
    batch = probe(run, "vqa", ())
    words = ("red", "blue", "it")  # which differ in their first tokens
    for decoding in (Decoding(choices=words), Decoding(answers=words, num_beams=2)):
        assert {answer.text for answer in run.model.answer(batch, decoding)} <= set(words)


def test_it_is_counted_and_not_merged(
    recipe: Recipe, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = build_shapes(recipe.model_setup, list(recipe.tasks), torch.float32).count_parameters()
    assert counts.by_part.keys() == {"vision", "backbone", "lora", "connector"}
    assert counts.by_part["connector"].trainable == 8 * 16 + 16
    out = str(tmp_path / "out")
    assert run_command(["convert", "merge", "--run", str(whole), "--out", out]) == 2
    assert "VisualPrefix cannot be exported" in capsys.readouterr().err


def run_saved(file: Path) -> int:
    """Train a recipe on a rank; the exit code."""
    return run_recipe(load_recipe(file), False)


def test_a_kind_says_all_of_itself_in_its_file(
    recipe: Recipe, ranks2: RankPool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No other file knows its class, its trained part or its form on disk: it trains, is counted,
    converted, and has a card."""
    old = recipe.model
    assert isinstance(old.vision, ConvNet)
    kind = SavedPrefix(path=old.path, vision=old.vision)  # type: ignore[attr-defined]
    optimizer = replace(recipe.optimizer, connector_learning_rate=None, norms_learning_rate=0.005)
    run, file = tmp_path / "run", tmp_path / "run.yaml"
    save_recipe(replace(recipe, model=kind, output=str(run), optimizer=optimizer), file)
    assert ranks2.run(run_saved, file, timeout=120) == [0, 0]
    trained = load_run(run)
    groups = parameter_groups(trained.model, trained.recipe)
    at_its_rate = {p for group in groups if group["peak_lr"] == 0.005 for p in group["params"]}
    assert at_its_rate == set(trained.model.get_submodule("connector").parameters())

    capsys.readouterr()
    assert run_command(["describe", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["by_part"]["bridge"]["trainable"] == 8 * 16 + 16

    for command in ("merge", "hf"):
        out = tmp_path / command
        convert(command, "--run", run, "--out", out)
        converted = load_run(out)
        assert isinstance(converted.recipe.model, SavedPrefix)
        assert not converted.recipe.trained_text
        before = logits(load_run(run), "vqa", ())
        torch.testing.assert_close(logits(converted, "vqa", ()), before, rtol=0, atol=1e-4)
        card = (out / "README.md").read_text("utf-8")
        assert "tuned by vlds with LoRA + bridge on vqa" in card
        assert "transformers opens the T5 alone, without pictures" in card
        assert f'model = AutoModelForSeq2SeqLM.from_pretrained("{command}")' in card
