"""Toy tasks that a tiny frozen model learns in seconds with adapters: the first word of a question
says its answer, by a rule that a task's name cannot tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tests.toys.models import hf_config
from tests.toys.recipes import with_model
from tests.toys.trained_runs import OLD_ROWS, recipe_from
from vlds.models.backbones import T5
from vlds.models.kinds.joint import JointModel
from vlds.recipe.config import Recipe
from vlds.schema import Batch
from vlds.tasks import Task

NUM_WORDS = 6
"""Words that a question can begin with, and as many answers."""
FIRST_WORD, OTHER_WORDS, END = 3, 11, 1
"""Numbers of the first of these words, and of the first of the words that mean nothing."""
LENGTH = 4
"""Words of a question."""


def wide_recipe(world: Path, folder: Path, tasks: Sequence[str]) -> Recipe:
    """Tasks on a random T5 that is wide enough for adapters to learn a rule, and whose answers can
    be certain. Only methods train."""
    recipe = recipe_from("T5", world, folder)
    torch.manual_seed(1)
    model = T5.model_class(T5.config_class.from_dict(hf_config(T5, OLD_ROWS) | {"d_model": 48}))
    with torch.no_grad():
        model.decoder.final_layer_norm.weight.mul_(4)
    model.save_pretrained(folder / "source")
    task: Task = recipe.tasks["vqa"]
    return with_model(
        replace(recipe, tasks=dict.fromkeys(tasks, task)),
        backbone=replace(recipe.model.backbone, dropout=0.0),
        train_visual_embedding=False,
        train_norms=False,
    )


def draw_rules(num: int, seed: int) -> Tensor:
    """(num, NUM_WORDS) the answer to each first word."""
    draw = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(NUM_WORDS, generator=draw) for _ in range(num)])


def questions(rules: Tensor, num: int, seed: int) -> Batch:
    """Questions about one empty picture, of tasks 0, 1, ... in turn, which follow the rules
    (tasks, NUM_WORDS)."""
    draw = torch.Generator().manual_seed(seed)
    tasks = torch.arange(num) % len(rules)
    words = torch.randint(NUM_WORDS, (num,), generator=draw)
    input_ids = torch.randint(OTHER_WORDS, OLD_ROWS, (num, LENGTH), generator=draw)
    input_ids[:, 0] = FIRST_WORD + words
    answers = FIRST_WORD + rules[tasks, words]
    return Batch(
        ids=[str(n) for n in range(num)],
        task_index=tasks,
        input_ids=input_ids,
        attention_mask=torch.ones(num, LENGTH, dtype=torch.bool),
        labels=torch.stack([answers, torch.full_like(answers, END)], 1),
        weights=torch.ones(num),
        valid=torch.ones(num, dtype=torch.bool),
        image_index=torch.zeros(num, 1, dtype=torch.long),
        images=torch.zeros(1, 3, 16, 16, dtype=torch.uint8),
    )


def tune(
    model: JointModel, batch_of: Callable[[int], Batch], steps: int, rate: float
) -> JointModel:
    """Train whatever trains in a model for some steps on the batches of their numbers."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    model.train()
    for step in range(steps):
        batch = batch_of(step)
        optimizer.zero_grad()
        loss = model(batch, torch.full((len(batch),), 1 / len(batch))).loss
        loss.backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def mean_nll(model: JointModel, batch: Batch) -> float:
    """Nats a token of the answers."""
    assert batch.labels is not None
    output = model.eval()(batch, torch.ones(len(batch)))
    return float(output.token_nll_sum.sum()) / batch.labels.numel()
