"""Engines on tiny models: a case with its recipe, global batches and their micro-batches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tests.toys.models import DIM, GRID, Words, backbone
from vlds.data.config import DataConfig
from vlds.data.order.mixed_order import BatchCut
from vlds.models import JointSeq2Seq
from vlds.models.backbones import T5, Backbone, Bart
from vlds.models.build import build_model
from vlds.models.heads import Head
from vlds.models.kinds.joint import JointModel
from vlds.models.methods import Adapter, Method
from vlds.models.vision import StoredFeatures
from vlds.models.visual_embedding import VisualEmbeddingConfig
from vlds.recipe.config import AdamWUpdate, OptimizerConfig, Recipe, TrainingConfig
from vlds.runtime.deepspeed_start import start_ranks
from vlds.schema import IGNORED_LABEL, Batch
from vlds.tasks import GQA, VQA, Caption, Task
from vlds.training.deepspeed_config import complete_deepspeed_config, cut_batches
from vlds.training.engine import Engine
from vlds.training.optimizer import parameter_groups, set_learning_rate

FAMILIES: dict[str, type[Backbone]] = {"T5": T5, "Bart": Bart}
TASKS: dict[str, Task] = {"vqa": VQA(), "caption": Caption(), "gqa": GQA()}
NUM_EXAMPLES = 16
NUM_CLASSES = 4
RATE = 1e-2
EPS = 1e-4
"""AdamW's eps, far above the rounding noise of gradients, which would else become whole steps."""


@dataclass(frozen=True)
class Case:
    """What differs between the runs of one test; `make_case` writes its files."""

    folder: str
    family: str = "T5"
    stage: int = 3
    sizes: tuple[int, ...] = (NUM_EXAMPLES,)
    """Examples of the global batches, in turn."""
    micro_batch_size: int | None = None
    method: Method = field(default_factory=lambda: Adapter(sharing="multiple", reduction=4))
    others: dict[str, Method] = field(default_factory=dict)
    """More methods, by name."""
    heads: dict[str, Head] = field(default_factory=dict)
    """Task -> its head; `with_classes` makes its examples."""
    dropout: float = 0.0
    visual_rate: float | None = None
    clip_norm: float = 0.0
    weight_decay: float = 0.01
    update: AdamWUpdate = "torch"
    parts: int = 1
    num_steps: int = 0
    """Length of the run, for methods that act at given steps."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    scaling: dict[str, int] = field(default_factory=dict)
    """DeepSpeed's settings of fp16's loss scale."""
    persistence: int = 0
    """Tensors with fewer numbers stay whole; at 0 even these tiny ones are partitioned."""
    evaluates_whole: bool = False
    """Evaluation under stage 3 gathers all weights, not layer by layer."""
    offload: bool = False
    """Masters and moments are in CPU memory, at stage 3 the weights too."""


def make_case(folder: Path, **fields: Any) -> Case:
    """A case with its files: a backbone's config, and DeepSpeed's."""
    case = Case(str(folder), **fields)
    backbone(FAMILIES[case.family], folder)
    zero: dict[str, Any] = {
        "stage": case.stage,
        "overlap_comm": True,
        "contiguous_gradients": True,
    }
    if case.stage == 3:
        zero["stage3_param_persistence_threshold"] = case.persistence
    if case.offload:
        for what in ("optimizer", "param")[: case.stage - 1]:
            zero[f"offload_{what}"] = {"device": "cpu", "pin_memory": True}
    settings: dict[str, Any] = {"zero_optimization": zero, "zero_force_ds_cpu_optimizer": False}
    if case.scaling:
        settings["fp16"] = case.scaling
    (folder / f"zero{case.stage}.json").write_text(json.dumps(settings), encoding="utf-8")
    return case


def case_recipe(case: Case) -> Recipe:
    """Adapters and the visual embedding of a tiny model train."""
    folder = Path(case.folder)
    return Recipe(
        output=str(folder / "run"),
        methods={"method": case.method, **case.others},
        tasks={name: replace(t, head=case.heads.get(name)) for name, t in TASKS.items()},
        data=DataConfig(global_batch_size=max(case.sizes), micro_batch_size=case.micro_batch_size),
        optimizer=OptimizerConfig(
            learning_rate=RATE,
            connector_learning_rate=case.visual_rate,
            clip_norm=case.clip_norm,
            weight_decay=case.weight_decay,
            eps=EPS,
            update=case.update,
        ),
        training=TrainingConfig(
            precision=case.precision, deepspeed=str(folder / f"zero{case.stage}.json")
        ),
        model=JointSeq2Seq(
            backbone=FAMILIES[case.family](
                config=str(folder / f"{case.family}.json"),
                extra_tokens=0,
                visual_tokens=12,
                dropout=case.dropout,
            ),
            vision=StoredFeatures(dim=DIM, grid=GRID),
            visual_embedding=VisualEmbeddingConfig(boxes="grid"),
        ),
    )


def recipe_model(run: Recipe) -> JointModel:
    """The recipe's model, the same in every process."""
    return build_model(run.model_setup, list(run.tasks), run.training.dtype, Words())


def start_engine(case: Case) -> tuple[Engine, BatchCut]:
    """An engine around the case's model on the ranks of this process's pool, at rate RATE."""
    run = case_recipe(case)
    ranks = start_ranks(60)
    cut = cut_batches(run, ranks.world_size)
    model = recipe_model(run)
    config = complete_deepspeed_config(Path(run.training.deepspeed), run, cut)
    groups = parameter_groups(model, run)
    engine = Engine(
        model,
        groups,
        config,
        ranks=ranks,
        tasks=list(run.tasks.values()),
        eps=EPS,
        update=case.update,
        parts=case.parts,
        num_steps=case.num_steps,
        evaluates_whole=case.evaluates_whole,
    )
    engine.least_gathered = case.persistence
    set_learning_rate(engine.parameter_groups, 1.0)
    return engine, cut


def global_batch(seed: int, tasks: Sequence[int] | None = None, size: int = NUM_EXAMPLES) -> Batch:
    """`size` examples of all tasks, with targets of 1 to 9 tokens and unlike weights."""
    draw = torch.Generator().manual_seed(seed)
    task_index = torch.randint(len(TASKS), (size,), generator=draw)
    task_index = task_index if tasks is None else torch.tensor(list(tasks))
    prompts = torch.randint(3, 40, (size, 7), generator=draw)
    mask = torch.arange(7) < torch.randint(2, 8, (size, 1), generator=draw)
    labels = torch.randint(3, 40, (size, 9), generator=draw)
    ends = torch.randint(1, 10, (size, 1), generator=draw)
    return Batch(
        ids=[f"{seed}-{n}" for n in range(size)],
        task_index=task_index,
        input_ids=prompts.masked_fill(~mask, 1),
        attention_mask=mask,
        labels=labels.masked_fill(torch.arange(9) >= ends, IGNORED_LABEL),
        # Captions carry no soft scores.
        weights=torch.rand(size, generator=draw).masked_fill(task_index == 1, 1.0),
        valid=torch.ones(size, dtype=torch.bool),
        image_index=torch.randint(5, (size, 1), generator=draw),
        features=torch.randn(5, GRID * GRID, DIM, generator=draw).half(),
    )


def with_classes(batch: Batch, case: Case, seed: int = 0) -> Batch:
    """The same examples, those of tasks with heads with scores of classes in place of tokens."""
    draw = torch.Generator().manual_seed(seed)
    numbers = [number for number, name in enumerate(TASKS) if name in case.heads]
    has_classes = torch.isin(batch.task_index, torch.tensor(numbers))
    num_before = 1 if case.family == "Bart" else 0
    assert batch.labels is not None
    labels = batch.labels.masked_fill(has_classes[:, None], IGNORED_LABEL)
    labels[has_classes, num_before] = 1 if case.family == "T5" else 2
    targets = torch.rand(len(batch), NUM_CLASSES, generator=draw) * has_classes[:, None]
    return replace(batch, labels=labels, class_targets=targets)


def part_of(batch: Batch, rows: slice) -> Batch:
    """Some rows of a batch, cut to the lengths that they need."""
    assert batch.labels is not None
    per_example = {
        f.name: value[rows]
        for f in fields(batch)
        if isinstance(value := getattr(batch, f.name), Tensor) and f.name != "features"
    }
    prompt = int(per_example["attention_mask"].sum(1).max())
    columns = (per_example["labels"] != IGNORED_LABEL).nonzero()[:, 1]
    target = int(columns.max()) + 1
    widths: dict[str, Any] = {
        "input_ids": per_example["input_ids"][:, :prompt],
        "attention_mask": per_example["attention_mask"][:, :prompt],
        "labels": per_example["labels"][:, :target],
    }
    return replace(batch, **(per_example | widths | {"ids": batch.ids[rows]}))


def own_micro_batches(batch: Batch, engine: Engine, cut: BatchCut) -> list[Batch]:
    """An engine's part of a global batch."""
    return micro_batches(batch, engine.ranks.global_rank, cut)


def micro_batches(batch: Batch, global_rank: int, cut: BatchCut) -> list[Batch]:
    """A rank's part of a global batch, cut as the training stream cuts it."""
    pieces = cut.pieces(len(batch), global_rank)
    return [part_of(batch, slice(p.start, p.stop)) if p else stand_in(batch) for p in pieces]


def stand_in(batch: Batch) -> Batch:
    """The micro-batch of a rank that has no row: one row that does not count."""
    first = part_of(batch, slice(0, 1))
    return replace(first, valid=torch.zeros_like(first.valid))


def start_deepspeed() -> None:
    """Initialize DeepSpeed on the process group, without building its CPU operations."""
    import deepspeed
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False)


def whole_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All tensors of a partitioned model, gathered."""
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        return {name: tensor.detach().clone() for name, tensor in model.unique_state()}


BETA_1 = 0.9
