"""Tiny runs with any method, and what is compared of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tests.test_artifact import batch, recipe_of
from vlds.artifact import LoadedRun, load_run, own_tensors, save_artifact
from vlds.cli.commands import run_command
from vlds.config import Recipe
from vlds.methods import (
    IA3,
    Adapter,
    BitFit,
    Compacter,
    DecoderPromptTuning,
    Full,
    Hyperformer,
    LoRA,
    LowRankAdapter,
    Method,
    PrefixTuning,
    PromptTuning,
)
from vlds.models.build import build_model
from vlds.models.vl_model import VLModel

SMALL = {"task_dim": 6, "hidden_dim": 5, "projected_dim": 4}
METHODS: dict[str, Callable[[], Method]] = {
    "full": Full,
    "bitfit": BitFit,
    "bitfit, new": lambda: BitFit(add_biases=True),
    "bitfit, all": lambda: BitFit(add_biases=True, add_norm_and_head_biases=True),
    "adapter": lambda: Adapter(reduction=4),
    "adapters, half": lambda: Adapter(
        reduction=4, sharing="half_shared_up", layer_norm_before=True, layer_norm_after=True
    ),
    "compacter": lambda: Compacter(reduction=4, cross_attention=False),
    "compacters": lambda: Compacter(reduction=4, sharing="multiple", rule="over_tasks"),
    "thin compacter": lambda: Compacter(reduction=4, rule="everywhere", block_rank=1),
    "low rank": lambda: LowRankAdapter(reduction=4, rank=2, sharing="half_shared_down"),
    "hyperformer": lambda: Hyperformer(reduction=4, **SMALL),
    "hyperformer, kinds": lambda: Hyperformer(reduction=4, kind_embeddings=True, **SMALL),
    "lora": lambda: LoRA(rank=2, alpha=3.0),
    "loras": lambda: LoRA(rank=2, sharing="half_shared_up"),
    "lora, some": lambda: LoRA(rank=2, alpha=3.0, roles=["cross_attn_v"], train_biases=False),
    "ia3": IA3,
    "ia3s": lambda: IA3(sharing="multiple"),
    "prompts": lambda: PromptTuning(length=3, hidden_dim=6, sharing="multiple"),
    "bare prompts": lambda: PromptTuning(length=3, hidden_dim=None),
    "decoder prompts": lambda: DecoderPromptTuning(length=3, hidden_dim=6),
    "prefixes": lambda: PrefixTuning(length=3, hidden_dim=6),
}
"""Every method of the registry, in unlike ways."""
ONLY = {"bitfit": "Bart", "decoder prompts": "Bart"}
"""Methods that one family alone can have."""
CASES = [
    (family, name)
    for name in METHODS
    for family in ("T5", "Bart")
    if ONLY.get(name, family) == family
]
CASES += [("FLAN", name) for name in ("full", "adapter", "lora", "ia3", "bare prompts")]


def recipe_with(family: str, name: str, world: Path, folder: Path) -> Recipe:
    """Two tasks, made pictures, the method and the visual embedding train."""
    recipe = recipe_of(family, world, folder)
    return replace(recipe, methods={"method": METHODS[name]()}, train_norms=False)


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
