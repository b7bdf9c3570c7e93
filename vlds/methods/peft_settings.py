"""Settings of peft's methods: which there are, and which a recipe can have."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

from vlds.runtime.near_names import guess

ADALORA = "ADALORA"
TYPES = (
    ADALORA, "C3A", "DELORA", "FOURIERFT", "GRALORA", "HIRA", "HRA", "LN_TUNING", "LOHA", "LOKR",
    "LORA", "MISS", "OFT", "VERA", "WAVEFT",
)  # fmt: skip
"""Names of peft's PeftType that are known to work here."""
RERUN = ("HRA", "LN_TUNING", "OFT")
"""Those that compute the layer anew from its input, whatever stands behind it already."""
READS_WEIGHTS = ("HIRA",)
"""Those that compute from the layer's weights, which folding what stands before them changes."""
OTHER_TYPES = {
    "IA3": "use vlds' own IA3",
    "PROMPT_TUNING": "use vlds' own PromptTuning",
    "PREFIX_TUNING": "use vlds' own PrefixTuning",
    "TRAINABLE_TOKENS": (
        "it takes the place of the embedding table, and methods extend linear layers and norms; "
        "vlds' own PromptTuning trains embeddings before the text"
    ),
}
"""Others -> what to do."""
ABOUT_FILES = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version",
        "revision", "task_type",
    }
)  # fmt: skip
"""Settings that say what a file is for, and nothing about the method."""
WHICH_LAYERS = frozenset({"exclude_modules", "layers_pattern", "layers_to_transform"})
"""Settings that choose among layers; in files the layers' full paths replace them."""
BY_NAME = ("target_modules", *sorted(WHICH_LAYERS), "rank_pattern", "alpha_pattern")
"""Settings that choose layers by names or patterns."""
REFUSED = {
    **dict.fromkeys(ABOUT_FILES, "vlds sets it"),
    "bias": "name the method BitFit beside this one",
    "modules_to_save": "name the method Full, or train the layers by a method of their own",
    "trainable_token_indices": "methods extend linear layers and norms, not the embedding table",
    "target_parameters": "methods extend layers, not parameters; name target_modules",
    "layer_replication": "methods leave the backbone's layers as they are",
    "megatron_config": "vlds does not run Megatron",
    "loftq_config": "load a quantised backbone, and start from init_lora_weights: true",
    "corda_config": "it needs gradients or states of data; use init_lora_weights: pissa",
    "eva_config": "it needs states of data; use init_lora_weights: pissa",
    "lora_ga_config": "it needs gradients of data; use init_lora_weights: pissa",
    "arrow_config": "it routes between several adapters; there is one here",
    "use_bdlora": "it is for serving several adapters",
    "alora_invocation_tokens": "it reads the text that Hugging Face's forward pass gets",
    "coft": "it changes weights in the forward pass, where the optimizer does not see it",
    **dict.fromkeys(
        (
            "kasa_config",
            "megatron_core",
            "monteclora_config",
            "qalora_group_size",
            "runtime_config",
            "use_qalora",
            "velora_config",
        ),
        "it is not known to work here",
    ),
    "total_step": "vlds sets it, to the steps of the run",
    "ensure_weight_tying": "vlds keeps tied layers tied",
    "save_projection": "vlds always saves it, so that a run opens the same everywhere",
}
"""Settings of peft that a recipe cannot have, and why or what to do."""
LAYER_SETTINGS = WHICH_LAYERS | {"fan_in_fan_out", "target_modules"}
ADALORA_SETTINGS = frozenset(
    {
        "beta1", "beta2", "deltaT", "init_r", "lora_alpha", "lora_dropout", "orth_reg_weight",
        "target_r", "tfinal", "tinit",
    }
)  # fmt: skip
"""What AdaLoRA reads; peft's config has all settings of LoRA too."""
ADALORA_LEAST = {"init_r": 1, "target_r": 1, "tinit": 0, "tfinal": 0, "deltaT": 1}
"""AdaLoRA's whole numbers, and the least of each."""
STARTS = ("gaussian", "olora", "orthogonal", "pissa")
"""Words that `init_lora_weights` may be, beside true and false."""
CHANGES_BASE = ("olora", "pissa")
"""Those that take the adapter's first product out of the layer's own weights."""


def peft_config(type: str, settings: Mapping[str, Any], target_modules: str | None = None) -> Any:
    """peft's config; `target_modules` is a pattern of paths, None for that of the settings.

    Errors: ValueError if peft is not installed, for types and settings that it does not know, and
    for those that a recipe cannot have.
    """
    if type not in TYPES:
        cure = OTHER_TYPES.get(type) or f"{guess(type, TYPES)}choose from: {', '.join(TYPES)}"
        raise ValueError(f"type: got {type}; {cure}")
    if importlib.util.find_spec("peft") is None:
        raise ValueError("Peft needs the package peft; pip install 'vlds[peft]'")
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kind = PEFT_TYPE_TO_CONFIG_MAPPING[type]
    check_settings(type, settings, known_settings(type, [f.name for f in fields(kind)]))
    given = dict(settings)
    if type == ADALORA:
        given["total_step"] = shortest_schedule(settings)
    if target_modules is not None:
        given["target_modules"] = target_modules
    try:
        return kind(**given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"settings: {error}") from None


def reads_weights(config: Any) -> bool:
    """True if a method computes from the weights of the layer that it stands behind."""
    return config.peft_type.value in READS_WEIGHTS or bool(getattr(config, "use_dora", False))


def known_settings(type: str, names: Collection[str]) -> Collection[str]:
    """Those of the settings of peft's config that a type reads."""
    return ADALORA_SETTINGS | LAYER_SETTINGS if type == ADALORA else names


def shortest_schedule(settings: Mapping[str, Any]) -> int:
    """The least number of steps in which AdaLoRA's budget can fall; a run's own number replaces
    it.

    Errors: ValueError for settings with which it cannot fall.
    """
    check_adalora(settings)
    first, last = settings.get("init_r", 12), settings.get("target_r", 8)
    if not 1 <= last < first:
        raise ValueError(
            f"settings: init_r is {first} and target_r {last}; AdaLoRA's budget falls from the one "
            "to the other, so give a smaller target_r"
        )
    steps: int = settings.get("tinit", 0) + settings.get("tfinal", 0) + 1
    return steps


def check_adalora(settings: Mapping[str, Any]) -> None:
    """Errors: ValueError for numbers that peft takes, and fails over in the first steps."""
    for name, least in ADALORA_LEAST.items():
        value = settings.get(name, least)
        if type(value) is not int or value < least:
            raise ValueError(f"settings.{name}: got {value!r}; give a whole number from {least} on")
    for name in ("beta1", "beta2"):
        value = settings.get(name, 0.85)
        if type(value) is not float or not 0 < value < 1:
            raise ValueError(f"settings.{name}: got {value!r}; give a number between 0 and 1")


def check_settings(type: str, settings: Mapping[str, Any], known: Collection[str]) -> None:
    """Errors: ValueError for settings that the type does not have, or that a recipe cannot have."""
    known = sorted(set(known) - REFUSED.keys())
    for key, value in settings.items():
        if key in REFUSED:
            raise ValueError(f"settings.{key}: got {value!r}; {REFUSED[key]}")
        if key not in known:
            near = guess(key, known) or f"choose from: {', '.join(known)}"
            raise ValueError(f"settings.{key}: {type} has no such setting; {near.strip()}")
    start = settings.get("init_weights", True)
    if not isinstance(start, bool) and start != "lycoris":
        raise ValueError(f"settings.init_weights: got {start}; choose true or false")
    start = settings.get("init_lora_weights", True)
    if not isinstance(start, bool) and start not in STARTS:
        raise ValueError(
            f"settings.init_lora_weights: got {start}; choose true, false or one of "
            f"{', '.join(STARTS)}, which need no data and draw nothing for the backbone"
        )
