"""Guesses which key of a recipe a wrong one means: the right name in another place, or the name
that other trainers have for it."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from vlds.methods.base import Method
from vlds.recipe.choices import (
    CHOICES,
    class_if_there,
    concrete_classes,
    dataclass_of,
    field_types,
    is_choice,
    is_mapping_of_choices,
)
from vlds.runtime.near_names import closest

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
    "report_to": ("wandb_project", "tensorboard"),
    "max_length max_seq_length": ("max_prompt_tokens", "max_target_tokens"),
    "beam beams beam_size": ("num_beams",),
    "img_size resolution": ("image_size",),
    "gpus devices num_gpus nproc_per_node num_processes": ("--ranks",),
    "resume_from_checkpoint": ("--resume",),
    "base": ("--config",),
}
"""Names, separated by blanks -> what does the same here: the last part of a key, perhaps with its
section, or an option."""
MEANT = {habit: keys for habits, keys in HABITS.items() for habit in habits.split()}
MOST_MEANT = 3
ALIKE = 0.8
"""How similar a name must be to one in another place; two names in one place need less."""


def hint_at(name: str, here: str, known: list[str], tree: Any, options: type) -> str:
    """'did you mean ...? ' about an unknown key `name` of the place `here`, which has the `known`
    ones, in the tree of the dataclass `options`; '' if nothing is like it."""
    keys = list(dict.fromkeys(dotted_keys(tree, options)))
    plain = name.lower().replace("-", "_")
    wanted = MEANT.get(plain, (plain,))
    found = [word for word in wanted if word.startswith("--")]
    for word in wanted:
        section, _, name_there = word.rpartition(".")
        found += [k for k in keys if last(k) == name_there and k.startswith(section) and k != here]
    beside = [key for key in found if key.rpartition(".")[0] == here]
    if not beside and (close := closest(name, known)) is not None and plain not in MEANT:
        beside = [f"{here}.{close}".strip(".")] if not found else []
    if not found and not beside:
        ends = list(dict.fromkeys(map(last, keys)))
        near = difflib.get_close_matches(plain, ends, 1, ALIKE)
        found = [key for key in keys if last(key) in near]
    if shown := (beside or sorted(found, key=lambda key: key.count(".")))[:MOST_MEANT]:
        return f"did you mean {' or '.join(map(repr, shown))}? "
    section, _, field = wanted[0].rpartition(".")
    owners = [
        name
        for base in ((Method,) if section else CHOICES)
        for name, cls in concrete_classes(base).items()
        if field in field_types(cls)
    ]
    return f"{field} is a key of {', '.join(sorted(owners)[:MOST_MEANT])}; " if owners else ""


def last(key: str) -> str:
    """The last part of a dotted key."""
    return key.rpartition(".")[2]


def dotted_keys(tree: Any, cls: type, key: str = "") -> Iterator[str]:
    """All keys that a recipe's tree may set, with the classes that it chooses: as they are written
    on the command line, without init_args."""
    given = tree if isinstance(tree, Mapping) else {}
    for name, hint in field_types(cls).items():
        whole, value, inner = f"{key}.{name}".strip("."), given.get(name), dataclass_of(hint)
        yield whole
        if inner is None:
            continue
        if is_mapping_of_choices(hint):
            for entry, chosen in value.items() if isinstance(value, Mapping) else ():
                yield from chosen_keys(chosen, inner, f"{whole}.{entry}")
        elif is_choice(inner):
            yield from chosen_keys(value, inner, whole)
        elif value is not None or type(None) not in getattr(hint, "__args__", ()):
            yield from dotted_keys(value, inner, whole)


def chosen_keys(value: Any, base: type, key: str) -> Iterator[str]:
    """The keys of a value that chooses a class."""
    path = value.get("class_path") if isinstance(value, Mapping) else value
    if isinstance(path, str) and (cls := class_if_there(path, base)) is not None:
        yield from dotted_keys(
            value.get("init_args") if isinstance(value, Mapping) else {}, cls, key
        )
