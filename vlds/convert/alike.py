"""Checks that runs are of one model: what their recipes and their backbones' configs say of what is
computed, vocabularies, and names and shapes of tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlds.artifact import LoadedRun
from vlds.config import Recipe, to_tree
from vlds.models.build import build_model

Opened = tuple[Path, LoadedRun]
ONE_MODEL = "only runs of one model can be combined"
NOT_THE_MODEL = {
    # Where weights and tokenizer come from: they themselves are compared.
    "config", "path", "pretrained", "tokenizer", "weights",
    # How weights were drawn, trained and saved.
    "_name_or_path", "architectures", "chunk_size_feed_forward", "dtype", "embedding_std",
    "initializer_factor", "initializer_range", "init_std", "learning_rate", "torch_dtype",
    "transformers_version", "use_cache",
}  # fmt: skip
"""Settings that do not change what given weights compute; nor does dropout, by any name."""


def essence(run: LoadedRun, with_tasks: bool) -> dict[str, Any]:
    """What combined runs must have in common, besides their tensors."""
    recipe = run.recipe
    essentials = {
        **method_settings(recipe, recipe.methods),
        **chosen_settings("model", to_tree(recipe.model)),
    }
    if with_tasks:
        heads = {name: to_tree(task.head) for name, task in recipe.tasks.items() if task.head}
        essentials |= {"tasks": list(recipe.tasks), "heads": heads}
    for name, part in run.model.parts.items():
        settings = shaping(config_of(run.model.get_submodule(part.path)))
        essentials |= {f"{name}.{key}": value for key, value in settings.items()}
    return essentials


def method_settings(recipe: Recipe, names: Iterable[str]) -> dict[str, Any]:
    """The settings of methods, as `chosen_settings` has them."""
    trees = to_tree(recipe.methods)
    settings = (chosen_settings(f"methods.{name}", trees[name]) for name in names)
    return {key: value for each in settings for key, value in each.items()}


def chosen_settings(key: str, tree: Any) -> dict[str, Any]:
    """Dotted key -> the classes that a recipe chooses inside a value, and their settings."""
    if not isinstance(tree, Mapping):
        return {key: tree}
    chosen = {key: tree["class_path"]} if "class_path" in tree else {}
    for name, value in shaping(tree.get("init_args", tree)).items():
        chosen |= chosen_settings(f"{key}.{name}", value)
    return chosen


def shaping(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those that change what given weights compute."""
    return {
        key: value
        for key, value in settings.items()
        if key not in NOT_THE_MODEL and "drop" not in key and not key.startswith("train_")
    }


def config_of(module: nn.Module) -> dict[str, Any]:
    """Hugging Face's config of a model that has one."""
    configs = (getattr(each, "config", None) for each in module.modules())
    hf_config = next((config for config in configs if hasattr(config, "to_dict")), None)
    return {} if hf_config is None else dict(hf_config.to_dict())


def check_settings(
    first: Opened,
    other: Opened,
    expected: Mapping[str, Any],
    given: Mapping[str, Any],
    option: str = "",
) -> None:
    """Errors: ValueError that names what differs, settings or the vocabulary."""
    for key in [*expected, *(given.keys() - expected.keys())]:
        if expected.get(key) != given.get(key):
            raise ValueError(
                f"{option}{key}: {expected.get(key)} in {first[0]}, {given.get(key)} in "
                f"{other[0]}; {ONE_MODEL}"
            )
    if first[1].model.tokenizer.get_vocab() != other[1].model.tokenizer.get_vocab():
        raise ValueError(f"{option}tokenizer: {other[0]} has another vocabulary than {first[0]}")


def check_names(first: Opened, other: Opened, same_tasks: bool) -> None:
    """Errors: ValueError if a tensor has no counterpart, or (of the same tasks) none of its shape,
    whatever the settings say; runs of other tasks may have other heads."""
    shapes = [{n: tuple(t.shape) for n, t in r.model.unique_state()} for _, r in (first, other)]
    if first[1].recipe.tasks.keys() != other[1].recipe.tasks.keys():
        shapes = [
            {name: shape for name, shape in each.items() if task_of_head(name) is None}
            for each in shapes
        ]
    if odd := sorted(shapes[0].keys() ^ shapes[1].keys()):
        owner = first[0] if odd[0] in shapes[0] else other[0]
        raise ValueError(f"{odd[0]}: only {owner} has it; {ONE_MODEL}")
    for name in sorted(shapes[0]) if same_tasks else ():
        if (one := shapes[0][name]) != (another := shapes[1][name]):
            raise ValueError(f"{name}: {one} in {first[0]}, {another} in {other[0]}; {ONE_MODEL}")


def task_of_head(tensor: str) -> str | None:
    """The task whose head a tensor belongs to, by its name; None if it belongs to no head."""
    part, _, rest = tensor.partition(".")
    return rest.partition(".")[0] if part == "heads" else None


def check_base(first: Opened, base: Opened) -> None:
    """Errors: ValueError if the base of a sum is not what the run began with."""
    expected, given = (
        {key: value for key, value in essence(run, False).items() if key.split(".")[0] != "methods"}
        for _, run in (first, base)
    )
    check_settings(first, base, expected, given, "--base: ")
    shapes = [{n: tuple(t.shape) for n, t in run.model.unique_state()} for _, run in (first, base)]
    for name in [*shapes[0], *sorted(shapes[1].keys() - shapes[0].keys())]:
        if shapes[0].get(name) != shapes[1].get(name):
            raise ValueError(
                f"--base: {base[0]} has {'no' if name in shapes[0] else 'a'} {name} "
                f"{shapes[0].get(name) or shapes[1][name]}; the base is what the runs began with, "
                "the weights of their methods included"
            )
    # `convert hf` drops methods that are part of the weights by then.
    common = sorted(first[1].recipe.methods.keys() & base[1].recipe.methods.keys())
    expected, given = (method_settings(run.recipe, common) for _, run in (first, base))
    check_settings(first, base, expected, given, "--base: ")
    tasks = list(first[1].recipe.tasks), list(base[1].recipe.tasks)
    if tasks[0] != tasks[1] and stacked(first[1].recipe):
        raise ValueError(
            f"--base: the tasks of {base[0]} are {tasks[1]}, those of {first[0]} {tasks[0]}, and "
            "tasks have weights of their own; the base is what the runs began with"
        )


def stacked(recipe: Recipe) -> set[str]:
    """Tensors with a slice for each task: those whose shape follows the number of tasks."""
    shapes = []
    for tasks in (["one"], ["one", "two"]):
        with torch.device("meta"):
            model = build_model(recipe.model_setup, tasks, torch.float32, None)
        shapes.append({name: tensor.shape for name, tensor in model.unique_state()})
    return {name for name, shape in shapes[0].items() if shapes[1][name] != shape}
