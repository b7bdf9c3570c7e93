"""How vlds trains the cases of `benchmarks/train.py`: its engine, on one rank.

    python benchmarks/training/ours.py [CHANGE] CASE

CHANGE is what to leave out, as `without.py` names it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from llava import IMAGE, LLAMA, write_files
from peers import ALPHA, RANK, REDUCTION
from shapes import FEATURES, GRID, Case, RandomBatch, serve
from torch import Tensor

from vlds.data.config import DataConfig
from vlds.models import Causal, ImageTextToText, JointSeq2Seq, ModelKind
from vlds.models.backbones import T5, Bart
from vlds.models.build import build_model
from vlds.models.methods import Adapter, Compacter, Full, LoRA, Method
from vlds.models.vision import StoredFeatures
from vlds.recipe.config import OptimizerConfig, Recipe, TrainingConfig
from vlds.runtime.deepspeed_start import start_ranks
from vlds.schema import IGNORED_LABEL, NO_IMAGE, Batch
from vlds.tasks import VQA
from vlds.training.deepspeed_config import complete_deepspeed_config, cut_batches
from vlds.training.engine import Engine
from vlds.training.optimizer import parameter_groups, set_learning_rate


class NoWords:
    """Stands for a tokenizer, of which only the length is asked."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length


def method_of(case: Case) -> Method:
    """The case's method, as the peers have it."""
    if case.method == "LoRA":
        return LoRA(rank=RANK, alpha=ALPHA, dropout=case.dropout, train_biases=False)
    classes = {"Adapter": Adapter, "Compacter": Compacter}
    return Full() if case.method == "Full" else classes[case.method](reduction=REDUCTION)


def recipe_of(case: Case, folder: Path) -> tuple[Recipe, Any]:
    """A recipe of the case, and what stands for its tokenizer."""
    vision = StoredFeatures(dim=FEATURES, grid=GRID)
    words: Any = NoWords(50_465 if case.model == "bart-base" else 32_200)
    model: ModelKind
    if case.model == "causal":
        (folder / "llama.json").write_text(json.dumps(LLAMA), encoding="utf-8")
        model, words = Causal(config=str(folder / "llama.json"), vision=vision), None
    elif case.model == "image-text":
        write_files(folder)
        model = ImageTextToText(config=str(folder / "config.json"), processor=str(folder))
        words = model.load_processor()
    else:
        family = Bart if case.model == "bart-base" else T5
        sizes = f"recipes/backbones/{case.model}.json"
        backbone = family(config=sizes, tokenizer="none", dropout=case.dropout)
        model = JointSeq2Seq(backbone=backbone, vision=vision)
    recipe = Recipe(
        output=str(folder / "run"),
        model=model,
        methods={"words": method_of(case)},
        tasks={"vqa": VQA()},
        data=DataConfig(global_batch_size=case.batch),
        optimizer=OptimizerConfig(),
        training=TrainingConfig(precision=case.precision, deepspeed="ds_configs/zero2.json"),
    )
    return recipe, words


def batch_of(case: Case, drawn: RandomBatch) -> Batch:
    """The batch as the model's kind reads it."""
    size = len(drawn.labels)
    tokens, labels = drawn.prompts, drawn.labels
    features: Tensor | None = None
    image_index = torch.full((size, 1), NO_IMAGE)
    media: list[dict[str, Tensor]] = []
    if case.model == "image-text":
        tokens = torch.cat([torch.full((size, GRID * GRID), IMAGE), tokens], 1)
        media = [{"pixel_values": row[None]} for row in drawn.features.to(case.dtype)]
    else:
        features, image_index = drawn.features.half(), torch.arange(size)[:, None]
    on_prompt = case.model in ("causal", "image-text")
    if on_prompt:
        unread = torch.full_like(tokens, IGNORED_LABEL)
        tokens, labels = torch.cat([tokens, labels], 1), torch.cat([unread, labels], 1)
    return Batch(
        ids=[str(row) for row in range(size)],
        task_index=torch.zeros(size, dtype=torch.int64),
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens, dtype=torch.bool),
        labels=labels,
        labels_on_prompt=on_prompt,
        weights=torch.ones(size),
        valid=torch.ones(size, dtype=torch.bool),
        image_index=image_index,
        features=features,
        media=media,
    )


def step_of(case: Case, folder: Path) -> tuple[Callable[[RandomBatch], object], int]:
    """A step of the engine, and the number of trained weights."""
    ranks = start_ranks(60)
    recipe, words = recipe_of(case, folder)
    config = complete_deepspeed_config(
        Path(recipe.training.deepspeed), recipe, cut_batches(recipe, 1)
    )
    model = build_model(recipe.model_setup, list(recipe.tasks), case.dtype, words)
    engine = Engine(
        model,
        parameter_groups(model, recipe),
        config,
        ranks=ranks,
        tasks=list(recipe.tasks.values()),
    )
    set_learning_rate(engine.parameter_groups, 1.0)
    trained = model.count_parameters().trainable
    return lambda drawn: engine.step([batch_of(case, drawn)]), trained


if __name__ == "__main__":
    the_case = Case.from_command()
    if len(sys.argv) > 2:
        from without import CHANGES

        CHANGES[sys.argv[1]]()
    with tempfile.TemporaryDirectory() as the_folder:
        serve(the_case, *step_of(the_case, Path(the_folder)))
