"""Types that recipes give their fields, checks of what users and files give, and near names for a
misspelt one.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias, get_args, get_type_hints

LARGEST = 1 << 63
"""Bound of whole numbers in files: larger ones do not fit NumPy, and some not even a float."""
LARGEST_SETTING = 10**15
"""Bound of a recipe's numbers: steps times examples must fit 64 bits too."""


@dataclass(frozen=True, repr=False)
class Limits:
    """Bounds of a number in a recipe. They are part of the field's type (`Count`, `Share`, ...), so
    that a new field has some too."""

    least: float
    most: float = LARGEST_SETTING
    above_least: bool = False
    """True if `least` itself is not allowed."""
    below_most: bool = False
    """True if `most` itself is not allowed."""

    def hold(self, value: float) -> bool:
        """True for a number within the bounds; NaN and infinities never are."""
        low = value > self.least if self.above_least else value >= self.least
        high = value < self.most if self.below_most else value <= self.most
        return low and high and math.isfinite(value)

    def __repr__(self) -> str:
        low = f"more than {self.least:,}" if self.above_least else f"{self.least:,} or more"
        if self.most == LARGEST_SETTING:
            return f"a number above {self.least:,}" if self.above_least else low
        if self.above_least or self.below_most:
            return f"{low}, and {'less than' if self.below_most else 'at most'} {self.most:,}"
        return f"a number from {self.least:,} to {self.most:,}"


Count: TypeAlias = Annotated[int, Limits(1)]
Pixels: TypeAlias = Annotated[int, Limits(1, 8192)]
"""Along a side: at the most, a picture takes 800 MB in fp32."""
Natural: TypeAlias = Annotated[int, Limits(0)]
NotNegative: TypeAlias = Annotated[float, Limits(0)]
Positive: TypeAlias = Annotated[float, Limits(0, above_least=True)]
Share: TypeAlias = Annotated[float, Limits(0, 1)]
PositiveShare: TypeAlias = Annotated[float, Limits(0, 1, above_least=True)]
ShareBelow1: TypeAlias = Annotated[float, Limits(0, 1, below_most=True)]


@dataclass(frozen=True)
class PathMark:
    """Marks texts of a recipe that name files or folders. The mark stands in the field's type, so
    that everything that moves, checks or compares the paths of recipes finds a new field too."""

    kind: Literal["any", "file", "data", "written"]
    """any: a file, a folder, or perhaps a name on the hub. file: a file of this machine or of vlds.
    data: a data set's folder, URL or pattern of shards. written: a folder in which vlds writes and
    removes, so that the recipe of an artifact has no say in it."""


SourcePath: TypeAlias = Annotated[str, PathMark("any")]
SourceFile: TypeAlias = Annotated[str, PathMark("file")]
DataPath: TypeAlias = Annotated[str, PathMark("data")]
WrittenPath: TypeAlias = Annotated[str, PathMark("written")]


class Choice:
    """Base of the classes that a recipe chooses by name: kinds of models, backbones, encoders,
    methods, tasks, heads. A field of such a type, or a mapping of names to it, chooses a class."""


def check_numbers(cls: type, values: Mapping[str, Any]) -> None:
    """Check values that no parser has looked at for the fields of a dataclass. Errors: ValueError
    that names the first one that is not a number, or outside its type's limits."""
    hints = get_type_hints(cls, include_extras=True)
    for name in hints.keys() & values.keys():
        for fault in number_faults(values[name], hints[name]):
            raise ValueError(f"{name}: {fault}")


def number_faults(value: Any, hint: Any) -> Iterator[str]:
    """What is wrong with a number of the type `hint`: outside of the type's limits, not finite, or
    larger than files can hold. Lists of a type with limits are looked through."""
    limits = limits_of(hint)
    # Without limits the type may still be a float, which must be finite; texts and None pass.
    if isinstance(value, (list, tuple)):
        for entry in value if limits is not None else ():
            yield from number_faults(entry, hint)
    elif not isinstance(value, (int, float)) or isinstance(value, bool):  # to Python, True is 1
        if limits is not None and value is not None:
            yield f"got {value!r:.100}; give {limits}"
    # Not math.isfinite, which raises OverflowError for whole numbers beyond a float's range.
    elif value != value or abs(value) == math.inf:
        finite = ", and finite" if limits is not None and limits.most == LARGEST_SETTING else ""
        yield f"got {value}; give {limits or 'a finite number'}{finite}"
    elif limits is not None and not limits.hold(value):
        too_large = value > limits.most == LARGEST_SETTING
        yield f"got {value}; give {f'at most {LARGEST_SETTING:,}' if too_large else limits}"


def limits_of(hint: Any) -> Limits | None:
    """The limits in a type, at any depth."""
    for part in (*getattr(hint, "__metadata__", ()), *get_args(hint)):
        limits = part if isinstance(part, Limits) else limits_of(part)
        if limits is not None:
            return limits
    return None


def check_path_or_config(config: Any) -> None:
    """Errors: ValueError unless one of the fields `path` and `config` is set, and not both."""
    if (config.path is None) == (config.config is None):
        raise ValueError(
            f"path: {config.path}, config: {config.config}; give exactly one of them: `path` for "
            "pretrained weights, `config` for random ones"
        )


def is_number(value: object) -> bool:
    """True for any float, NaN included, and for a whole number that fits 64 bits."""
    return isinstance(value, float) or (type(value) is int and abs(value) < LARGEST)


def are_numbers(tree: object) -> bool:
    """True for a JSON object whose values are all numbers."""
    return isinstance(tree, dict) and all(map(is_number, tree.values()))


def leaves(tree: object, key: str = "") -> Iterator[tuple[str, object]]:
    """Dotted key and value of each number, text, ... in a tree of settings."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from leaves(value, f"{key}.{name}".strip("."))
    elif isinstance(tree, list | tuple):
        for number, value in enumerate(tree):
            yield from leaves(value, f"{key}[{number}]")
    else:
        yield key, tree


def not_finite(tree: object, key: str = "") -> Iterator[tuple[str, float]]:
    """Dotted key and value of each number in a tree of settings that is NaN or infinite."""
    for name, value in leaves(tree, key):
        if isinstance(value, float) and not math.isfinite(value):
            yield name, value


def check_leaves(tree: object) -> None:
    """Errors: ValueError for values of a recipe's tree that no field takes, and that no message can
    show: whole numbers of thousands of digits, and texts with a NUL."""
    for name, value in leaves(tree):
        # Python refuses to write whole numbers of more than 4300 digits, in messages too.
        if isinstance(value, int) and value.bit_length() > 64:
            raise ValueError(
                f"{name}: got a number of {value.bit_length():,} bits; give a small one"
            )
        if isinstance(value, str) and "\0" in value:
            raise ValueError(f"{name}: got {value!r:.100}, which holds a NUL; leave it out")


HABITS: dict[str, tuple[str, ...]] = {
    # Names of Hugging Face's Trainer and PEFT, of Lightning, DeepSpeed and common scripts.
    "lr": ("learning_rate",),
    "batch_size batch train_batch_size": ("global_batch_size", "micro_batch_size"),
    "per_device_train_batch_size micro_batch train_micro_batch_size_per_gpu": ("micro_batch_size",),
    "gradient_accumulation_steps accumulate_grad_batches": ("micro_batch_size",),
    "per_device_eval_batch_size": ("eval_batch_size",),
    "num_train_epochs num_epochs max_epochs n_epochs": ("epochs",),
    "max_steps num_steps max_iters iterations": ("steps",),
    "output_dir out out_dir save_dir run": ("output",),
    "model_name_or_path model_name pretrained_model_name_or_path model": ("path",),
    "lora_r r": ("methods.rank",),
    "lora_alpha": ("methods.alpha",),
    "lora_dropout": ("methods.dropout",),
    "target_modules": ("methods.roles",),
    "warmup warmup_steps": ("warmup_ratio",),
    "schedule scheduler lr_scheduler lr_scheduler_type": ("decay",),
    "max_grad_norm gradient_clip_val grad_clip": ("clip_norm",),
    "adam_epsilon": ("eps",),
    "adam_beta1 adam_beta2": ("betas",),
    "bf16 fp16 dtype torch_dtype mixed_precision": ("precision",),
    "gradient_checkpointing": ("activation_checkpointing",),
    "logging_steps": ("log_every",),
    "save_steps": ("save_every",),
    "save_total_limit": ("keep_states",),
    "eval_steps eval_every eval_strategy": ("evaluate_every",),
    "metric_for_best_model load_best_model_at_end": ("best",),
    "dataloader_num_workers workers": ("num_workers",),
    "random_seed": ("seed",),
    "train_file train_data train_dir dataset dataset_name data_path": ("train",),
    "validation_file validation val valid eval_data": ("evaluate",),
    "report_to": ("wandb_project", "tensorboard", "mlflow_experiment"),
    "max_length max_seq_length": ("max_prompt_tokens", "max_target_tokens"),
    "beam beams beam_size": ("num_beams",),
    "img_size resolution": ("image_size",),
    "gpus devices num_gpus nproc_per_node num_processes": ("--ranks",),
    "resume_from_checkpoint": ("--resume",),
    "base": ("--config",),
    "device accelerator gpu use_gpu": (
        "every GPU that is visible is used; to choose, set CUDA_VISIBLE_DEVICES",
    ),
}
"""Names, separated by blanks -> what does the same here: the last part of a key, perhaps with its
section, or an option; or a sentence, if nothing does."""
MEANT = {habit: keys for habits, keys in HABITS.items() for habit in habits.split()}


def note_on(name: str) -> str:
    """What to say of another trainer's option that has no counterpart here, else ''."""
    meant = MEANT.get(name.lstrip("-").lower().replace("-", "_"), ("",))[0]
    return f"{meant}; " if " " in meant else ""


def guess(name: str, known: Iterable[str], prefix: str = "") -> str:
    """'did you mean ...? ' if a known name is close, else ''."""
    close = closest(name, known)
    return "" if close is None else f"did you mean '{prefix}{close}'? "


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that equals `name` apart from case, has its letters as initials (lr), begins
    with it or the reverse (r, step), or differs in a few letters; None if there is none."""
    names = list(known)
    word = name.lower()
    # The first rule that a name meets wins: "lr" is short for learning_rate, though nearer in
    # letters to others.
    rules: list[Callable[[str], bool]] = [
        lambda other: other.lower() == word,
        lambda other: "".join(part[:1] for part in other.lower().split("_")) == word,
        lambda other: other.lower().startswith(word) or word.startswith(other.lower()),
    ]
    alike = [other for rule in rules for other in names if word and rule(other)]
    close = alike or difflib.get_close_matches(name, names, 1)
    return close[0] if close else None


class MadeForBatch:
    """What a module has made for the running batch, and another one reads. The model's state does
    not hold it: a copy of the model starts without it."""

    def __init__(self) -> None:
        self.value: Any = None

    def take(self) -> Any:
        """The value, which is then let go."""
        value, self.value = self.value, None
        return value

    def __deepcopy__(self, memo: dict[int, Any]) -> MadeForBatch:
        return MadeForBatch()
