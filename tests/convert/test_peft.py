"""Folders in peft's layout: peft itself opens them on the converted backbone, and the outputs on
text are the run's; what peft writes opens here."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM

from tests.toys.trained_runs import (
    convert,
    recipe_with,
    text_logits,
    trained_run,
    write_pair,
    write_run,
)
from vlds.artifact import load_run
from vlds.convert.peft import PeftFolders
from vlds.models.methods import LoRA
from vlds.recipe.config import save_recipe

peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'vlds[dev]'")
TASKS = ("vqa", "caption")
EXPRESSIBLE = [
    ("T5", "LoRA half"), ("Bart", "LoRA"), ("T5", "IA3 per task"), ("T5", "PromptTuning per task"),
    ("T5", "Peft"),
    *(
        pytest.param("T5", name, marks=pytest.mark.slow)
        for name in (
            "LoRA", "LoRA few", "IA3", "PromptTuning bare",
            *(f"Peft {word}" for word in ("loha", "norms", "rslora", "lokr", "vera", "oft")),
        )
    ),
    *(
        pytest.param("Bart", name, marks=pytest.mark.slow)
        for name in ("LoRA half", "LoRA few", "IA3", "IA3 per task", "Peft vera")
    ),
    pytest.param("FLAN", "LoRA", marks=pytest.mark.slow),
]  # fmt: skip


def text() -> dict[str, Tensor]:
    """Three rows, two of them shorter."""
    draw = torch.Generator().manual_seed(3)
    lengths = torch.tensor([[7], [5], [6]])
    return {
        "input_ids": torch.randint(3, 30, (3, 7), generator=draw),
        "attention_mask": (torch.arange(7) < lengths).long(),
        "decoder_input_ids": torch.randint(3, 30, (3, 4), generator=draw),
    }


@pytest.mark.slow
@pytest.mark.sampled(3)
@pytest.mark.parametrize(("family", "name"), EXPRESSIBLE, ids=lambda word: word)
def test_peft_gives_the_same_outputs(family: str, name: str, world: Path, tmp_path: Path) -> None:
    spread = (
        1.0 if "IA3" in name or "vera" in name else 0.1
    )  # factors move little in so small a model
    run = write_run(recipe_with(family, name, world, tmp_path), seed=1, spread=spread)
    convert("hf", "--run", run, "--out", tmp_path / "hf")
    convert("peft", "--run", run, "--out", tmp_path / "peft", "--base", "NAME", "--verify")
    loaded = load_run(run)
    apart = {"LoRA half", "IA3 per task", "PromptTuning per task"}
    folders = [tmp_path / "peft" / task for task in TASKS] if name in apart else [tmp_path / "peft"]
    for task, folder in enumerate(folders):
        base = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "hf").eval()
        with torch.no_grad():
            plain = base(**text()).logits
            model = peft.PeftModel.from_pretrained(base, folder).eval()
            theirs = model(**text()).logits
        expected = text_logits(loaded, task, **text())
        assert (theirs - expected).abs().max() < 2e-6 * expected.abs().max()
        assert (theirs - plain).abs().max() > 1e-3 * expected.abs().max()
        settings = json.loads((folder / "adapter_config.json").read_text())
        assert settings["base_model_name_or_path"] == "NAME"


@pytest.fixture(scope="module")
def plain_backbone(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted folder without methods, and a recipe.yaml that adds a LoRA to it."""
    folder = tmp_path_factory.mktemp("backbone")
    first = write_run(recipe_with("T5", "LoRA", world, folder), seed=1)
    convert("merge", "--run", first, "--out", folder / "hf")
    method = LoRA(rank=4, alpha=5.0, train_biases=False)
    recipe = replace(load_run(folder / "hf").recipe, methods={"theirs": method})
    save_recipe(recipe, folder / "recipe.yaml")
    return folder


def peft_writes(backbone: Path, out: Path, **settings: Any) -> Tensor:
    """Let peft train an adapter on the backbone, so to say, and save it; what it then computes on
    the backbone."""
    base = AutoModelForSeq2SeqLM.from_pretrained(backbone / "hf")
    lora = peft.LoraConfig(
        r=4, lora_alpha=5, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM", **settings
    )
    model = peft.get_peft_model(base, lora).eval()
    torch.manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(out)
    base = AutoModelForSeq2SeqLM.from_pretrained(backbone / "hf")
    again = peft.PeftModel.from_pretrained(base, out).eval()
    with torch.no_grad():
        logits: Tensor = again(**text()).logits
    return logits


@pytest.mark.slow
@pytest.mark.parametrize(
    "start",
    [True, "orthogonal"]
    + [pytest.param(start, marks=pytest.mark.slow) for start in (False, "gaussian", "eva")],
)
def test_what_peft_has_written(start: bool | str, plain_backbone: Path, tmp_path: Path) -> None:
    """An adapter that peft trained on the converted backbone is a run, which answers like it."""
    theirs = peft_writes(plain_backbone, tmp_path / "peft", init_lora_weights=start)
    words = ["--from", tmp_path / "peft", "--config", plain_backbone / "recipe.yaml"]
    convert("peft", *words, "--out", tmp_path / "out", "--verify", "--tolerance", "0")
    ours = text_logits(load_run(tmp_path / "out"), 0, **text())
    assert (theirs - ours).abs().max() < 2e-6 * ours.abs().max()


@pytest.mark.parametrize(
    ("settings", "recipe"),
    [
        (lambda: peft.IA3Config(target_modules=["k", "wo"], feedforward_modules=["wo"]), "IA3"),
        (lambda: peft.PromptTuningConfig(num_virtual_tokens=3, num_transformer_submodules=1),
         "PromptTuning bare"),
    ],
)  # fmt: skip
def test_settings_that_peft_writes_by_default(
    settings: Callable[[], Any], recipe: str, world: Path, tmp_path: Path
) -> None:
    """None of them stands in the way; one that says more does."""
    run = trained_run(recipe_with("T5", recipe, world, tmp_path))
    layout = PeftFolders(run)
    theirs = settings().to_dict() | {"task_type": "SEQ_2_SEQ_LM"}
    layout.check_config(theirs, tmp_path)
    with pytest.raises(ValueError, match="use_more is 'yes', which vlds has no method for"):
        layout.check_config(theirs | {"use_more": "yes"}, tmp_path)


@pytest.fixture(scope="module")
def exported(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run with LoRA for each task, and its folder in peft's layout."""
    folder = tmp_path_factory.mktemp("peft")
    run, _ = write_pair("Bart", "LoRA half", world, folder)
    convert("peft", "--run", run, "--out", folder / "out")
    return run, folder / "out"


@pytest.mark.sampled(10)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": 4}, "r is 4, and 2 by the recipe's method"),
        ({"lora_alpha": 7}, "lora_alpha is 7, and 32.0 by the recipe"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3', and 'LORA'"),
        ({"use_rslora": True}, "use_rslora is True, which vlds has no method for"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\]"),
        ({"rank_pattern": {"q": 3}}, "rank_pattern is"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4', which"),
        ({"lora_alpha": math.nan}, "lora_alpha is nan; give it a finite number, or copy it again"),
        ({"rank_pattern": {"q": math.inf}}, "rank_pattern.q is inf; give it a finite number"),
        ({"a_setting_of_tomorrow": 1.5}, "a_setting_of_tomorrow is 1.5, which vlds has no method"),
    ],
)
def test_settings_that_the_recipe_lacks(
    change: dict[str, Any], message: str, exported: tuple[Path, Path], tmp_path: Path
) -> None:
    run, folder = exported
    for task in TASKS:
        (tmp_path / "in" / task).mkdir(parents=True)
        for file in (folder / task).iterdir():
            (tmp_path / "in" / task / file.name).write_bytes(file.read_bytes())
    file = tmp_path / "in" / "caption" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=f"caption/adapter_config.json: {message}"):
        convert("peft", "--from", tmp_path / "in", "--run", run, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tasks_that_should_share_and_do_not(
    exported: tuple[Path, Path], world: Path, tmp_path: Path
) -> None:
    """B is common to all tasks in the recipe."""
    from safetensors.torch import load_file, save_file

    run, folder = exported
    for number, task in enumerate(TASKS):
        (tmp_path / "in" / task).mkdir(parents=True)
        config = (folder / task / "adapter_config.json").read_text()
        (tmp_path / "in" / task / "adapter_config.json").write_text(config)
        tensors = load_file(folder / task / "adapter_model.safetensors")
        moved = {key: tensor + number for key, tensor in tensors.items()}
        save_file(moved, tmp_path / "in" / task / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"differs from task to task.*sharing: multiple"):
        convert("peft", "--from", tmp_path / "in", "--run", run, "--out", tmp_path / "out")
