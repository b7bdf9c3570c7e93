"""Tiny runs with any backbone and method, and what tests compare of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import BartTokenizer

from tests.toys.causal import save_model
from tests.toys.image_text import save_tiny
from tests.toys.kinds import IMAGE_TYPE, kind_recipe
from tests.toys.method_cases import FAMILY_CASES, METHOD_CASES
from tests.toys.models import hf_config, save_own_head, shake
from tests.toys.recipes import with_model
from tests.toys.world import world_recipe
from vlds.artifact import LoadedRun, load_run, own_tensors, save_artifact
from vlds.cli.main import run_command
from vlds.convert.verify import logits
from vlds.models.backbones import T5, Bart
from vlds.models.build import build_model
from vlds.models.kinds.joint import JointModel
from vlds.models.methods.host import run_beside
from vlds.recipe.config import Recipe
from vlds.schema import Batch

CASES = [
    *FAMILY_CASES,
    *(("FLAN", name) for name in ("Full", "Adapter", "LoRA", "IA3", "PromptTuning bare")),
]
"""Backbone and case of a method."""


def recipe_with(family: str, name: str, world: Path, folder: Path) -> Recipe:
    """Two tasks on generated pictures; the method and the visual embedding train."""
    recipe = recipe_from(family, world, folder)
    return with_model(
        replace(recipe, methods={"method": METHOD_CASES[name].method}), train_norms=False
    )


def built_run(recipe: Recipe) -> LoadedRun:
    """A run that has not trained."""
    processor = recipe.model.load_processor()
    model = build_model(recipe.model_setup, list(recipe.tasks), torch.float32, processor)
    return LoadedRun(recipe, processor, model.eval())


def trained_run(recipe: Recipe, seed: int = 0, spread: float = 0.1) -> LoadedRun:
    """A run whose trained weights follow from the seed; all others are the same for all seeds."""
    run = built_run(recipe)
    shake(run.model, seed, spread)
    return run


def save_run(run: LoadedRun) -> Path:
    """Save a run's artifact in its recipe's output folder; that folder."""
    folder = Path(run.recipe.output)
    tensors = own_tensors(run.model)
    save_artifact(
        folder / "artifact", tensors, run.recipe, run.processor, trained_on=run.trained_on
    )
    return folder


def write_run(recipe: Recipe, seed: int = 0, spread: float = 0.1) -> Path:
    """The folder of a trained run."""
    return save_run(trained_run(recipe, seed, spread))


def write_pair(family: str, name: str, world: Path, folder: Path) -> tuple[Path, Path]:
    """Folders of two runs of one recipe, which have trained to different weights."""
    recipe = recipe_with(family, name, world, folder)
    first = write_run(recipe, seed=1)
    return first, write_run(replace(recipe, output=str(folder / "other")), seed=2)


def convert(*words: str | Path) -> None:
    """Run `vlds convert`, which must succeed."""
    from vlds.convert.command import check_options, parse

    options = parse([str(word) for word in words])
    check_options(options)
    options.function(options)


def convert_code(*words: str | Path) -> int:
    """Run `vlds convert`; its exit code. Its message is on stderr."""
    return run_command(["convert", *(str(word) for word in words)])


def state_of(run: Path) -> dict[str, Tensor]:
    """All tensors of a run, in float32."""
    return dict(load_run(run, torch.float32).model.unique_state())


def assert_same(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Both have the same tensors, bit for bit."""
    assert actual.keys() == expected.keys()
    differing = [name for name in expected if not torch.equal(actual[name], expected[name])]
    assert differing == []


@torch.no_grad()
def logits_of(model: JointModel) -> Tensor:
    """Logits of both tasks; nothing trains, since torch then has other kernels on some CPUs."""
    return model.eval().requires_grad_(False).logits(picture_batch())


@torch.no_grad()
def text_logits(
    run: LoadedRun,
    task: int,
    input_ids: Tensor,
    decoder_input_ids: Tensor,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """Logits of texts without visual tokens."""
    model = run.model.eval().requires_grad_(False)
    model.context.routing.set(torch.full((len(input_ids),), task))
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    none = torch.zeros(len(input_ids), 0, model.backbone.config.d_model)
    prompts = run_beside(model.backbone)
    if prompts is not None:
        mask = torch.cat([mask.new_ones(prompts.shape[:2]), mask], 1)
    states = run.recipe.model.backbone.encode(model.backbone, input_ids, none, mask.bool(), prompts)
    return model.vocabulary_logits(model.decode(states, mask, decoder_input_ids))


OLD_ROWS = 30
SAVED_KINDS = {"causal": save_model, "image_text": partial(save_tiny, IMAGE_TYPE)}
"""Kind -> what saves a model in a folder."""


NUM_EXAMPLES = 3


def picture_batch() -> Batch:
    """Three examples about two pictures."""
    draw = torch.Generator().manual_seed(0)
    return Batch(
        ids=["a", "b", "c"],
        task_index=torch.tensor([0, 1, 0]),
        input_ids=torch.randint(3, 30, (NUM_EXAMPLES, 5), generator=draw),
        attention_mask=torch.ones(NUM_EXAMPLES, 5, dtype=torch.bool),
        labels=torch.randint(3, 30, (NUM_EXAMPLES, 4), generator=draw),
        weights=torch.ones(NUM_EXAMPLES),
        valid=torch.ones(NUM_EXAMPLES, dtype=torch.bool),
        image_index=torch.tensor([[0], [1], [1]]),
        images=torch.randint(256, (2, 3, 16, 16), generator=draw, dtype=torch.uint8),
    )


def bart_tokenizer(folder: Path) -> Path:
    """A tokenizer of bytes."""
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    words += sorted(pre_tokenizers.ByteLevel.alphabet())[: OLD_ROWS - len(words)]
    BartTokenizer(vocab={word: n for n, word in enumerate(words)}, merges=[]).save_pretrained(
        folder
    )
    return folder


def recipe_from(source: str, world: Path, folder: Path, precision: str = "fp32") -> Recipe:
    """A recipe whose backbone is a saved T5, FLAN-T5 (FLAN) or BART, or a T5 of a config; or whose
    model is a saved one of another kind."""
    if source in SAVED_KINDS:
        recipe = kind_recipe(source, world, folder / "run", precision=precision)
        SAVED_KINDS[source](folder / "source")
        fields = {"config": None, "tokenizer": None} if source == "causal" else {}
        return with_model(recipe, path=str(folder / "source"), **fields)
    recipe = world_recipe(world, folder / "run", precision=precision)
    if source == "config":
        return recipe
    family = Bart if source == "Bart" else T5
    if source == "FLAN":
        save_own_head(T5, folder / "source", OLD_ROWS)
    else:
        torch.manual_seed(1)
        config = family.config_class.from_dict(hf_config(family, OLD_ROWS))
        model = family.model_class(config)
        for tensor in model.buffers():  # Bart's final_logits_bias is not always zero
            if tensor.is_floating_point():
                tensor.normal_()
        model.save_pretrained(folder / "source")
    tokenizer = recipe.model.backbone.tokenizer
    if family is Bart:
        tokenizer = str(bart_tokenizer(folder / "bytes"))
    path = str(folder / "source")
    backbone = family(path=path, tokenizer=tokenizer, extra_tokens=0, visual_tokens=4)
    return with_model(recipe, backbone=backbone)


def save_random_run(recipe: Recipe) -> tuple[Tensor, dict[str, Tensor]]:
    """Save an artifact with random trained weights; its model's logits, and all its tensors."""
    processor = recipe.model.load_processor()
    dtype = torch.bfloat16 if recipe.training.precision == "bf16" else torch.float32
    # Another seed than the recipe's: no tensor comes back because it is drawn alike again.
    config = replace(recipe.model_setup, seed=recipe.seed + 1)
    model = build_model(config, list(recipe.tasks), dtype, processor)
    masters = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            masters[name] = torch.randn(parameter.shape)
            parameter.data.copy_(masters[name])
    save_artifact(Path(recipe.output) / "artifact", own_tensors(model, masters), recipe, processor)
    return logits(LoadedRun(recipe, processor, model), "vqa", ()), dict(model.unique_state())


def talkative_run(recipe: Recipe) -> Path:
    """The folder of a run whose weights are all large, so that its answers are many."""
    run = built_run(recipe)
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter *= 2
    return save_run(run)
