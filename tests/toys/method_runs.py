"""Tiny runs with any method, and what is compared of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tests.test_artifact import batch, recipe_of
from tests.toys.method_cases import FAMILY_CASES, METHOD_CASES
from vlds.artifact import LoadedRun, load_run, own_tensors, save_artifact
from vlds.cli.commands import run_command
from vlds.config import Recipe
from vlds.models.build import build_model
from vlds.models.vl_model import VLModel

CASES = [
    *FAMILY_CASES,
    *(("FLAN", name) for name in ("Full", "Adapter", "LoRA", "IA3", "PromptTuning bare")),
]
"""Backbone and case of a method."""


def recipe_with(family: str, name: str, world: Path, folder: Path) -> Recipe:
    """Two tasks, made pictures, the method and the visual embedding train."""
    recipe = recipe_of(family, world, folder)
    return replace(recipe, methods={"method": METHOD_CASES[name].method}, train_norms=False)


def made_run(recipe: Recipe, seed: int = 0, spread: float = 0.1) -> LoadedRun:
    """A run whose trained weights follow from the seed; all others are the same for all seeds."""
    tokenizer = recipe.backbone.load_tokenizer()
    model = build_model(recipe.model, list(recipe.tasks), torch.float32, tokenizer)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(spread * torch.randn(parameter.shape, generator=draw))
    return LoadedRun(recipe, tokenizer, model.eval())


def write_run(recipe: Recipe, seed: int = 0, spread: float = 0.1) -> Path:
    """Such a run's folder."""
    run, folder = made_run(recipe, seed, spread), Path(recipe.output)
    save_artifact(folder / "artifact", own_tensors(run.model), recipe, run.tokenizer)
    return folder


def write_pair(family: str, name: str, world: Path, folder: Path) -> tuple[Path, Path]:
    """Folders of two runs of one recipe, which have trained to different weights."""
    recipe = recipe_with(family, name, world, folder)
    first = write_run(recipe, seed=1)
    return first, write_run(replace(recipe, output=str(folder / "other")), seed=2)


def convert(*words: str | Path) -> None:
    """`vlds convert`, which must succeed."""
    from vlds.convert.command import check_options, parse

    options = parse([str(word) for word in words])
    check_options(options)
    options.function(options)


def complaint(*words: str | Path) -> int:
    """The exit code of `vlds convert`; what it says is on stderr."""
    return run_command(["convert", *(str(word) for word in words)])


def state_of(run: Path) -> dict[str, Tensor]:
    """All tensors of a run, in float32."""
    return dict(load_run(run, torch.float32).model.unique_state())


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Bit for bit."""
    assert found.keys() == expected.keys()
    odd = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert odd == []


@torch.no_grad()
def logits_of(model: VLModel) -> Tensor:
    """Logits of both tasks; nothing trains, since torch then has other kernels on some CPUs."""
    return model.eval().requires_grad_(False).logits(batch())


@torch.no_grad()
def text_logits(
    run: LoadedRun,
    task: int,
    input_ids: Tensor,
    decoder_input_ids: Tensor,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """Outputs on text alone, without visual tokens."""
    model = run.model.eval().requires_grad_(False)
    model.routing.set(torch.full((len(input_ids),), task))
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    none = torch.zeros(len(input_ids), 0, model.backbone.config.d_model)
    states, mask = run.recipe.backbone.encode(
        model.backbone, input_ids, mask.bool(), none, none[..., 0].bool(), model.method_prompts()
    )
    return model.vocabulary_logits(model.decode(states, mask, decoder_input_ids))
