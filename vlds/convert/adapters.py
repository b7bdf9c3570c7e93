"""Bottleneck adapters and Compacters in the layout of the library `adapters` (AdapterHub):
adapter_config.json and pytorch_adapter.bin, which `model.load_adapter(FOLDER)` opens.

The library itself is not needed. Its file of weights is torch.save's, since that is what it opens
unless told otherwise; it holds tensors alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlds.artifact import LoadedRun
from vlds.backbones import T5
from vlds.convert.adapter_folders import (
    Layout,
    Places,
    There,
    export_folders,
    import_folders,
    only_method,
)
from vlds.convert.output import save_torch
from vlds.convert.target import Target
from vlds.convert.verify import Verification
from vlds.methods import IA3, Adapter, Compacter, Hyperformer, LoRA, LowRankAdapter
from vlds.methods.bottleneck import StackedBottleneckModule
from vlds.models.build import BACKBONE_PREFIX

VERSION = "adapters.1.3.0"
FILES = ("pytorch_adapter.bin", "adapter.safetensors")
PLACES = {
    r"(.+)\.(SelfAttention\.o|EncDecAttention\.o|DenseReluDense\.wo)": r"\1.adapters",
    r"(.+)\.self_attn\.out_proj": r"\1.attention_adapters.adapters",
    r"(.+)\.encoder_attn\.out_proj": r"\1.cross_attention_adapters.adapters",
    r"(.+)\.fc2": r"\1.output_adapters.adapters",
}
"""Linear layer of the backbone -> where its adapters are there."""
LEAVES = {"weight": "weight", "bias": "bias"}
PHM_LEAVES = {"rule": "phm_rule", "blocks": "W", "left": "W_left", "right": "W_right", "bias": "b"}
REASONS: dict[type, str] = {
    LowRankAdapter: "adapters has no LowRankAdapter; `vlds convert merge` makes it Adapter",
    Hyperformer: "adapters has no Hyperformer; `vlds convert merge` makes it Adapter",
    LoRA: "LoRA has `vlds convert peft`",
    IA3: "IA3 has `vlds convert peft`",
}
DEFAULTS: dict[str, Any] = {
    "adapter_residual_before_ln": False, "cross_adapter": False, "dropout": 0.0,
    "factorized_phm_W": True, "factorized_phm_rule": False,
    "hypercomplex_nonlinearity": "glorot-uniform", "init_weights": "bert",
    "init_weights_seed": None, "inv_adapter": None, "inv_adapter_reduction_factor": None,
    "is_parallel": False, "learn_phm": True, "leave_out": [], "ln_after": False,
    "ln_before": False, "mh_adapter": True, "non_linearity": "gelu_new",
    "original_ln_after": True, "original_ln_before": False, "output_adapter": True,
    "phm_bias": True, "phm_c_init": "normal", "phm_dim": 4, "phm_init_range": 0.0001,
    "phm_layer": False, "phm_rank": 1, "reduction_factor": 16, "residual_before_ln": True,
    "scaling": 1.0, "shared_W_phm": False, "shared_phm_rule": True, "stochastic_depth": 0.0,
    "use_gating": False,
}  # fmt: skip
"""The library's settings, and ours where they compute what `Adapter` does."""
OF_TRAINING = {
    "dropout", "hypercomplex_nonlinearity", "init_weights", "init_weights_seed",
    "inv_adapter_reduction_factor", "learn_phm", "phm_c_init", "phm_init_range",
    "stochastic_depth",
}  # fmt: skip
"""Settings that do not change what a trained adapter computes."""
OF_PHM = {
    "factorized_phm_W", "factorized_phm_rule", "phm_bias", "phm_dim", "phm_rank", "shared_W_phm",
    "shared_phm_rule",
}  # fmt: skip
"""Settings that only Compacter has."""


def export_adapters(run: Path, out: Path, verification: Verification | None) -> None:
    """Write a run's Adapter or Compacter.

    Errors: ValueError where the library has no such method.
    """
    export_folders(run, out, adapters_layout, verification)


def import_adapters(
    folder: Path, target: Target, out: Path, verification: Verification | None
) -> None:
    """Write the artifact of a recipe with an Adapter or Compacter of the library.

    Errors: ValueError where it is not the recipe's.
    """
    import_folders(folder, target, out, adapters_layout, verification)


def adapters_layout(run: LoadedRun) -> Layout:
    """How the library would write a run's method.

    Errors: ValueError where it has no such method.
    """
    name, method = only_method(run, (Adapter, Compacter), "adapters", REASONS)
    assert isinstance(method, (Adapter, Compacter))
    config = config_of(method)
    model = run.model.backbone
    frame = {
        "config": config,
        "hidden_size": model.config.d_model,
        "model_class": type(model).__name__,
        "model_name": "",
        "model_type": model.config.model_type,
        "version": VERSION,
    }
    return Layout(
        "adapters",
        run.recipe,
        method,
        places=lambda adapter: places_of(name, method, run, adapter),
        config=lambda adapter: {**frame, "name": adapter},
        check_config=lambda found, file: check_config(found, frame, file),
        own_name=name,
        weight_files=FILES,
        write_weights=save_torch,
    )


def config_of(method: Adapter | Compacter) -> dict[str, Any]:
    """The library's settings."""
    config = DEFAULTS | {
        "reduction_factor": method.reduction,
        "cross_adapter": method.cross_attention,
        "ln_before": method.layer_norm_before,
        "ln_after": method.layer_norm_after,
    }
    if isinstance(method, Compacter):
        config |= {
            "phm_layer": True,
            "phm_dim": method.phm_dim,
            "shared_phm_rule": method.rule == "everywhere",
            "factorized_phm_W": method.block_rank is not None,
            "phm_rank": method.block_rank or 1,
        }
    return config


def places_of(name: str, method: Adapter | Compacter, run: LoadedRun, adapter: str) -> Places:
    """Where the method's tensors are in the file of an adapter."""
    places: dict[str, There] = {}
    everywhere = isinstance(method, Compacter) and method.rule == "everywhere"
    for path, module in run.model.backbone.named_modules():
        if not isinstance(module, StackedBottleneckModule) or not path.endswith(f".{name}"):
            continue
        linear = path.removesuffix(f".extensions.{name}")
        there = f"{place_of(linear)}.{adapter}."
        for leaf, tensor in module.state_dict().items():
            if everywhere and leaf.endswith("_rule"):
                prefix = "" if isinstance(run.recipe.backbone, T5) else "model."
                keys: tuple[str, ...] = (f"{prefix}shared_parameters.{adapter}.phm_rule",)
            else:
                keys = tuple(there + key for key in keys_of(leaf, method))
            shape = tuple(tensor.shape if "norm" in leaf else tensor.shape[1:])
            places[f"{BACKBONE_PREFIX}{path}.{leaf}"] = There(keys, shape)
    # What is one tensor here has one name here.
    known = {own for own, _ in run.model.unique_state()}
    return {own: there for own, there in places.items() if own in known}


def place_of(linear: str) -> str:
    """Where the adapters of a linear layer are."""
    for pattern, place in PLACES.items():
        if match := re.fullmatch(pattern, linear):
            return match.expand(place)
    raise ValueError(f"{linear}: the library adapters has no adapters there")


def keys_of(leaf: str, method: Adapter | Compacter) -> tuple[str, ...]:
    """`down_weight` -> adapter_down.0.weight; a norm before the bottleneck has two names."""
    if norm := re.fullmatch(r"(pre|post)_norm\.(\w+)", leaf):
        if norm[1] == "post":
            return (f"adapter_norm_after.{norm[2]}",)
        return (f"adapter_norm_before.{norm[2]}", f"adapter_down.0.{norm[2]}")
    half, _, rest = leaf.partition("_")
    leaves = PHM_LEAVES if isinstance(method, Compacter) else LEAVES
    number = f".{int(method.layer_norm_before)}" if half == "down" else ""
    return (f"adapter_{half}{number}.{leaves[rest]}",)


def check_config(found: Mapping[str, Any], ours: Mapping[str, Any], file: Path) -> None:
    """Errors: ValueError where settings that were read are not those of the recipe."""
    settings = found.get("config")
    if not isinstance(settings, dict):
        raise ValueError(f"{file} has no `config`: it is no adapter of the library adapters")
    if found.get("model_type") not in (None, ours["model_type"]):
        raise ValueError(
            f"{file}: model_type is {found['model_type']!r}, and the recipe's backbone a "
            f"{ours['model_type']}"
        )
    config = ours["config"]
    compared = set(config) - OF_TRAINING - (set() if config["phm_layer"] else OF_PHM)
    for key in sorted(compared):
        theirs = settings.get(key, DEFAULTS[key])
        if theirs != config[key] and not (key == "phm_rank" and not config["factorized_phm_W"]):
            raise ValueError(
                f"{file}: {key} is {theirs!r}, and {config[key]!r} by the recipe's method; vlds "
                "computes the latter, so give the method the same, if it can have that"
            )
