"""The dataclasses of a recipe, which describes a whole run.

A choice (model, backbone, vision encoder, method, task) is annotated with its abstract base, so a
new subclass in a new file is a new choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from vlds.data.config import DataConfig
from vlds.models.build import ModelSetup
from vlds.models.kinds.base import ModelKind
from vlds.models.methods.base import Method
from vlds.models.vision.base import VisionEncoder
from vlds.recipe.build import check_part, to_tree, to_yaml
from vlds.recipe.parse import named_first, parse
from vlds.recipe.paths import STARTED_IN, check_classes, with_start
from vlds.runtime.checks import (
    Count,
    DataPath,
    Limits,
    Natural,
    NotNegative,
    Positive,
    Share,
    ShareBelow1,
    SourceFile,
    SourcePath,
)
from vlds.runtime.files import write_whole
from vlds.runtime.terminal import visible
from vlds.runtime.yaml_file import read_yaml
from vlds.schema import PictureSpec
from vlds.tasks.base import TEST_MARK, Task

DEFAULT_STEPS = 1000
LONGEST_TIMEOUT = 100_000_000
"""Seconds, three years. torch counts nanoseconds, and cannot wait for centuries."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
LONGEST_NAME = 100
"""Bytes of a task's name; file systems allow 255, and longer names are made of it."""


AdamWUpdate = Literal["torch", "transformers"]
"""Whose formula moves the weights (vlds/training/optimizer.py)."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up, and a decay."""

    learning_rate: NotNegative = 1e-3
    """Peak learning rate; a method's own `learning_rate` replaces it for that method's weights."""
    connector_learning_rate: NotNegative | None = None
    """Peak learning rate of what makes visual tokens, the visual embedding or the projector;
    default: `learning_rate`."""
    norms_learning_rate: NotNegative | None = None
    """Peak learning rate of the backbone's norms, with `train_norms`; default: `learning_rate`."""
    heads_learning_rate: NotNegative | None = None
    """Peak learning rate of the tasks' heads; default: `learning_rate`. METER: 50 times that."""
    betas: list[ShareBelow1] = field(default_factory=lambda: [0.9, 0.999])
    """Decay rates of AdamW's two moments."""
    eps: Positive = 1e-6
    """AdamW's epsilon."""
    update: AdamWUpdate = "torch"
    """Whose AdamW moves the weights. torch: weights decay before the update, and epsilon is added
    behind the second moment's correction. transformers: as in the original codes of VL-T5,
    VL-Adapter, VL-PET and Ladder Side-Tuning, which took it from transformers 4: weights decay
    after the update, and epsilon is added before the correction, so that small gradients move
    weights less."""
    weight_decay: NotNegative = 0.01
    """Decay of the weights in `weight_decay_groups`."""
    weight_decay_groups: Literal["declared", "vl_adapter"] = "declared"
    """Which weights decay. declared: those that their modules declare: matrices, but not biases,
    norms, factors and the image order table. vl_adapter: as in the original VL-Adapter code, where
    norms' weights, biases of Compacter and LowRankAdapter and the image order table decay too."""
    clip_norm: NotNegative = 5.0
    """Largest norm of the whole gradient; 0 switches clipping off."""
    warmup_ratio: Share = 0.1
    """Share of the steps over which the learning rate rises linearly from 0."""
    decay: Literal["linear", "cosine"] = "linear"
    """How the rate falls: in a line, or as half a wave of a cosine."""
    decay_start: Share | None = None
    """Share of the steps after which the rate falls to 0; default: after the warm-up."""

    def __post_init__(self) -> None:
        if len(self.betas) != 2:
            raise ValueError(f"betas: got {self.betas}; give two numbers, like [0.9, 0.999]")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Length, precision and partitioning of the run."""

    steps: Count | None = None
    """Optimizer steps of the run; default: 1000, or as many as `epochs` needs."""
    epochs: Positive | None = None
    """Instead of `steps`: passes over the examples of all tasks together. Epochs of a single task
    depend on its share; the run logs them."""
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    """Type of weights and activations; master weights and moments are fp32 in all. fp16 is for GPUs
    without bf16, such as T4 and V100; `fp16` in DeepSpeed's file says how its loss is scaled."""
    reproducible: bool = False
    """Compute the same bits on any x86-64 CPU with AVX2, given as many ranks and the same library
    versions. Needs fp32 and uses one thread per rank; a step takes longer."""
    deepspeed: SourceFile = "ds_configs/zero2.json"
    """DeepSpeed's own configuration file; its "auto" fields follow this recipe."""
    activation_checkpointing: bool = False
    """Recompute each block's activations in the backward pass: less memory, a third more time."""
    log_every: Count = 20
    """Steps between log lines."""
    save_every: Count = 500
    """Steps between run states; the last step always saves."""
    keep_states: Count = 2
    """Newest run states that are kept, besides that of the best evaluation."""
    max_nonfinite_steps: Natural = 10
    """Steps in a row that may have a NaN or infinite loss or gradient; they change no weight. One
    more stops the run."""
    evaluate_first: bool = False
    """Evaluate before the first step: with identity-initialised methods, the frozen model."""
    evaluate_every: Natural = 0
    """Steps between evaluations; 0: only after the last step."""
    evaluate_whole: bool | None = None
    """Under ZeRO stage 3, evaluate with all weights on every rank, which is faster; false: gather
    them layer by layer, as in training. Default: true if each rank has memory for twice the
    model."""
    best: str | None = None
    """TASK/SCORE, like vqa/vqa_accuracy: keep the artifact of the evaluation with the best score
    in RUN/best; that of the last step is in RUN/artifact."""
    collective_timeout: Annotated[float, Limits(1, LONGEST_TIMEOUT)] = 600.0
    """Seconds that ranks wait for each other or for their loader's workers before they give up."""

    def __post_init__(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise ValueError(
                f"epochs: got {self.epochs}, and steps {self.steps} too; give one and set the "
                "other to null"
            )
        if self.reproducible and self.precision != "fp32":
            raise ValueError(
                f"precision: got {self.precision}, and reproducible true; CPUs differ in what they "
                "compute in half precision, so set precision to fp32"
            )
        if self.best is not None and not self.evaluate_every:
            raise ValueError(
                f"best: got {self.best!r}, but evaluate_every is 0, so there is one evaluation and "
                "nothing to choose from; set evaluate_every"
            )

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the run, after `epochs` has been converted to `steps`."""
        assert self.epochs is None
        return DEFAULT_STEPS if self.steps is None else self.steps

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights and activations."""
        return DTYPES[self.precision]

    @property
    def worker_timeout(self) -> float:
        """Seconds that a rank waits for its loader's workers. Shorter than `collective_timeout`, so
        that it gives up, and says why, before the ranks that wait for it."""
        return 0.9 * self.collective_timeout


@dataclass(frozen=True, kw_only=True)
class AlignmentConfig:
    """Region-word alignment before training, for vision encoders with random weights."""

    data: DataPath
    """A gqa data set whose samples hold the objects of their scene graphs."""
    steps: Count = 200
    """Steps of alignment."""
    batch_size: Count = 64
    """Pictures a step."""
    learning_rate: NotNegative = 3e-3
    """Peak learning rate."""


@dataclass(frozen=True, kw_only=True)
class MetaConfig:
    """Meta-learning before training (MetaAdapter): weights from which each task is learnt in few
    steps. Steps inside a task are Adam's, with `optimizer`'s second beta, eps and clip_norm."""

    steps: Count = 100
    """Outer steps. Each reads a global batch, or one for each task if these hold one task each."""
    learning_rate: NotNegative = 1e-3
    """Adam's rate inside a task."""
    outer_rate: NotNegative = 1.0
    """Share of the tasks' mean change that an outer step takes; falls linearly to 0."""
    weight_decay: NotNegative = 0.0
    """Decay inside a task of all weights, norms and biases too; it is added to the gradient."""


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where metrics go besides metrics.jsonl."""

    tensorboard: bool = False
    """Write tensorboard events into the run folder."""
    wandb_project: str | None = None
    """Log to this Weights & Biases project."""
    trackio_project: str | None = None
    """Log to this project of trackio."""
    mlflow_experiment: str | None = None
    """Log to this experiment of MLflow."""
    examples: Natural = 4
    """Predictions of each task, with their pictures, that trackers get after an evaluation."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One run. It is saved with the run, and reproduces it."""

    output: str
    """Run folder: metrics, run state, artifact, recipe."""
    seed: Annotated[int, Limits(0, 2**64 - 1)] = 0
    """Seed of initial weights, order of examples, sampled answers and dropout."""
    model: ModelKind
    """The frozen model: a class of vlds.models."""
    methods: dict[str, Method]
    """What is tuned, by name: classes of vlds.models.methods."""
    start: SourcePath | None = None
    """Begin with the weights of this run or artifact, as far as its methods are of the recipe's
    classes."""
    alignment: AlignmentConfig | None = None
    """First teach a vision encoder with random weights the words of its cells."""
    meta: MetaConfig | None = None
    """First bring what trains to where each task is learnt in few steps."""
    tasks: dict[str, Task]
    """What is learned, by name: classes of vlds.tasks."""
    data: DataConfig = field(default_factory=DataConfig)
    """Order of examples, and batches."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer and schedule."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Steps, precision, DeepSpeed."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Trackers."""

    def __post_init__(self) -> None:
        if not self.output.strip():
            raise ValueError(f"output: got {self.output!r}; name a folder")
        if not self.tasks:
            raise ValueError("tasks: the recipe has none; give at least one, see docs/tasks.md")
        for name, task in self.tasks.items():
            check_task_name(name)
            if task.batch_size is not None and self.data.unit != "global_batch":
                raise ValueError(
                    f"tasks.{name}.batch_size: got {task.batch_size}, but data.unit is "
                    f"{self.data.unit}: batches mix tasks; set data.unit to global_batch, or give "
                    f"tasks.{name}.weight"
                )
        if self.start is not None and self.alignment is not None:
            raise ValueError(
                f"start: got {self.start}, and alignment, which would change its vision encoder; "
                "leave one of them out"
            )
        if self.meta is not None and self.training.precision == "fp16":
            raise ValueError(
                "meta: its steps inside tasks do not scale the loss, without which small gradients "
                "vanish in training.precision fp16; set that to bf16 or fp32, or leave meta out"
            )
        # Half of a task's examples are learned from, the other half judges what was learned.
        for name, size in self.batch_sizes.items():
            if self.meta is not None and size < 2:
                raise ValueError(
                    f"meta: it halves each task's examples in a batch, but {name} is {size}; give "
                    "2 or more, or leave meta out"
                )

    @property
    def batch_sizes(self) -> dict[str, int]:
        """Sizes of the run's global batches, by the field that sets each."""
        common = {"data.global_batch_size": self.data.global_batch_size}
        of_tasks = {
            f"tasks.{name}.batch_size": task.batch_size
            for name, task in self.tasks.items()
            if task.batch_size is not None
        }
        # No batch has the common size if every task brings its own.
        return of_tasks if len(of_tasks) == len(self.tasks) else of_tasks | common

    @property
    def image(self) -> PictureSpec | None:
        """The pictures that the model takes; None if it takes stored features."""
        image = self.model.image
        return image and replace(image, decode=self.data.decode)

    @property
    def encoder(self) -> VisionEncoder:
        """The model's vision encoder.

        Errors: ValueError if the model has none of vlds.models.vision.
        """
        vision = getattr(self.model, "vision", None)
        if not isinstance(vision, VisionEncoder):
            raise ValueError(
                f"model: {type(self.model).__name__} encodes pictures itself; name a model with a "
                "vision encoder of vlds, such as JointSeq2Seq"
            )
        return vision

    @property
    def trained_text(self) -> list[str]:
        """Parts that train as a whole besides the methods, in words."""
        has_heads = any(task.head is not None for task in self.tasks.values())
        return [*self.model.trained_text, *(["heads"] if has_heads else [])]

    @property
    def model_setup(self) -> ModelSetup:
        """What `build_model` needs."""
        return ModelSetup(
            kind=self.model,
            methods=self.methods,
            outputs={name: out for name, t in self.tasks.items() if (out := t.class_output)},
            activation_checkpointing=self.training.activation_checkpointing,
            seed=self.seed,
        )


def check_task_name(name: str) -> None:
    """Errors: ValueError for a name that cannot be part of a file name or of a score's name, or
    that results on test data have. A stranger's recipe may name tasks, whose names become files."""
    plain = name.isprintable() and not set(name) & set("/\\")
    if not plain or not name.strip() or name[0] == "." or len(name.encode()) > LONGEST_NAME:
        raise ValueError(
            f"tasks: {name!r:.100} cannot be a task's name, because files are called so; give one "
            f"of at most {LONGEST_NAME} bytes, without slashes, control characters and a dot before"
        )
    if name.endswith(TEST_MARK):
        raise ValueError(
            f"tasks: '{name}' cannot be a task's name, because results on test data end in "
            f"{TEST_MARK}; choose another name"
        )


def parse_recipe(arguments: Sequence[str], prog: str = "vlds train") -> Recipe:
    """Build a recipe from `FILE` or `--config FILE` and overrides such as
    `--methods.adapter.reduction 4`.

    Errors: ValueError that names the key or class, shows the value and lists the known names.
    """
    return parse(Recipe, named_first(arguments, prog), prog, files=True)


def load_recipe(path: Path) -> Recipe:
    """Read a saved recipe.

    Errors: ValueError as for all recipes, and if it names a class that is not trusted; all name the
    file.
    """
    # Before it is parsed, which imports the modules of its classes.
    check_saved(read_yaml(path), str(path))
    try:
        return parse_recipe(["--config", str(path)])
    except ValueError as error:
        named = str(path) in str(error)
        raise ValueError(str(error) if named else f"{path}: {error}") from error


def check_saved(tree: Any, source: str) -> None:
    """Check a recipe that may come from someone else, so that parsing it runs none of their code.

    Errors: ValueError that names the key or class, and `source`.
    """
    check_classes(tree, source)
    if isinstance(tree, dict):  # a saved recipe notes its working directory, which is not a field
        tree = {key: value for key, value in tree.items() if key != STARTED_IN}
    try:
        check_part(tree, Recipe, saved=True)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def save_recipe(recipe: Recipe, path: Path, comments: Sequence[str] = ()) -> None:
    """Write the whole recipe with its defaults, under some comments. `load_recipe` gives an equal
    one, but without credentials in URLs, and with paths that fit its working directory.

    Errors: CannotWrite.
    """
    # `visible`: a line break in a comment would end it, and begin a key.
    head = "".join(f"# {visible(comment)}\n" for comment in comments)
    write_whole(path, head + to_yaml(with_start(to_tree(recipe), Recipe)))
