"""LoRA, (IA)^3 and prompts in the layout of Hugging Face's peft: adapter_config.json and
adapter_model.safetensors, which `PeftModel.from_pretrained` opens on the text backbone.

peft itself is not needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

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
from vlds.convert.target import Target
from vlds.convert.verify import Verification
from vlds.methods import (
    IA3,
    Adapter,
    BitFit,
    Compacter,
    DecoderPromptTuning,
    Hyperformer,
    LoRA,
    LowRankAdapter,
    Method,
    PrefixTuning,
    PromptTuning,
)
from vlds.methods.base import ExtendedLinear
from vlds.models.build import BACKBONE_PREFIX

FILES = ("adapter_model.safetensors", "adapter_model.bin")
WHOLE = "base_model.model."
OTHER = "`vlds convert adapters` has a layout for it"
REASONS: dict[type, str] = {
    PrefixTuning: "peft puts prefixes before the decoder's keys alone, vlds into every attention",
    DecoderPromptTuning: "peft has no prompts that run through the decoder alone",
    BitFit: "peft gives no layer a new bias",
    Adapter: f"peft has no Adapter; {OTHER}",
    Compacter: f"peft has no Compacter; {OTHER}",
    LowRankAdapter: f"peft has no LowRankAdapter; `vlds convert merge`, then {OTHER}",
    Hyperformer: f"peft has no Hyperformer; `vlds convert merge`, then {OTHER}",
}
FREE = {
    # What it is for, and who wrote it.
    "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision",
    "task_type",
    # Layers and sizes: names and shapes of the weights say the same.
    "exclude_modules", "feedforward_modules", "layers_pattern", "layers_to_transform",
    "num_attention_heads", "num_layers", "target_modules", "token_dim",
    # Training.
    "eva_config", "init_ia3_weights", "lora_dropout", "prompt_tuning_init",
    "prompt_tuning_init_text", "tokenizer_kwargs", "tokenizer_name_or_path",
    # Numbers and names that have a default, and mean nothing while what they are of is off.
    "megatron_core", "qalora_group_size",
}  # fmt: skip
"""Settings that do not change what given weights compute."""
PLAIN: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    # pissa, olora, corda, lora_ga and loftq change the backbone's weights too: with the unchanged
    # ones, which are all that is known here, the adapter computes something else.
    "init_lora_weights": (True, "gaussian", "orthogonal", "eva"),
}
"""Settings that must be one of these, absent or off; all others must be absent or off."""
OFF: tuple[Any, ...] = (None, False, "", [], {})
CHECKED = ("peft_type", "r", "lora_alpha", "num_virtual_tokens", "num_transformer_submodules")
"""Settings that must be the recipe's."""


def export_peft(run: Path, out: Path, verification: Verification | None, base: str | None) -> None:
    """Write a run's LoRA, IA3 or prompts. `base`: name of the backbone in adapter_config.json.

    Errors: ValueError where peft has no such method.
    """
    export_folders(run, out, lambda loaded: peft_layout(loaded, base), verification)


def import_peft(folder: Path, target: Target, out: Path, verification: Verification | None) -> None:
    """Write the artifact of a recipe with LoRA, IA3 or prompts of peft.

    Errors: ValueError where they are not the recipe's.
    """
    import_folders(folder, target, out, lambda run: peft_layout(run, None), verification)


def peft_layout(run: LoadedRun, base: str | None) -> Layout:
    """How peft would write a run's method.

    Errors: ValueError where it has no such method.
    """
    name, method = only_method(run, (LoRA, IA3, PromptTuning), "peft", REASONS)
    if isinstance(method, PromptTuning):
        check_prompts(name, method, run)
    places = places_of(name, method, run)
    config = config_of(name, method, run, places)
    return Layout(
        "peft",
        run.recipe,
        method,
        places=lambda _: places,
        config=lambda _: {"base_model_name_or_path": base, **config},
        check_config=lambda found, file: check_config(found, config, file),
        own_name=name,
        weight_files=FILES,
        write_weights=write_safetensors,
    )


def write_safetensors(tensors: dict[str, Tensor], file: Path) -> None:
    """As peft and transformers mark it."""
    save_file(tensors, file, metadata={"format": "pt"})


def check_prompts(name: str, method: PromptTuning, run: LoadedRun) -> None:
    """Errors: ValueError where peft's prompts compute something else."""
    if not isinstance(run.recipe.backbone, T5):
        raise ValueError(
            f"methods.{name}: peft's prompts have positions, and on BART move the text's; "
            "PromptTuning's have none there. `vlds convert hf` keeps them"
        )
    if method.hidden_dim is not None:
        raise ValueError(
            f"methods.{name}.hidden_dim: {method.hidden_dim}, and peft holds prompts as they are; "
            "set it to null"
        )


def extended(run: LoadedRun, name: str) -> dict[str, ExtendedLinear]:
    """Path below the backbone -> linear layer that the method extends."""
    return {
        path: module
        for path, module in run.model.backbone.named_modules()
        if isinstance(module, ExtendedLinear)
        and (name in module.extensions or name in module.input_extensions)
    }


def places_of(name: str, method: Method, run: LoadedRun) -> Places:
    """Where the method's tensors are in peft's file."""
    if isinstance(method, PromptTuning):
        table = f"extensions.{name}.network.table"
        shape = tuple(run.model.backbone.get_parameter(table).shape[1:])
        return {BACKBONE_PREFIX + table: There(("prompt_embeddings",), shape)}
    places: dict[str, There] = {}
    for path, linear in extended(run, name).items():
        ours = f"{BACKBONE_PREFIX}{path}"
        if isinstance(method, LoRA):
            for leaf in ("a", "b"):
                shape = tuple(linear.get_parameter(f"extensions.{name}.{leaf}").shape[1:])
                key = f"{WHOLE}{path}.lora_{leaf.upper()}.weight"
                places[f"{ours}.extensions.{name}.{leaf}"] = There((key,), shape)
        elif name in linear.extensions:
            there = There((f"{WHOLE}{path}.ia3_l",), (linear.out_features, 1))
            places[f"{ours}.extensions.{name}.factors"] = there
        else:
            there = There((f"{WHOLE}{path}.ia3_l",), (1, linear.in_features))
            places[f"{ours}.input_extensions.{name}.factors"] = there
    return places


def config_of(name: str, method: Method, run: LoadedRun, places: Places) -> dict[str, Any]:
    """peft's settings; what is left out has its defaults."""
    common = {"task_type": "SEQ_2_SEQ_LM", "inference_mode": True}
    if isinstance(method, PromptTuning):
        return common | {
            "peft_type": "PROMPT_TUNING",
            "num_virtual_tokens": method.length,
            # The encoder alone has prompts.
            "num_transformer_submodules": 1,
            "token_dim": run.model.backbone.config.d_model,
            "num_layers": run.model.backbone.config.num_hidden_layers,
            "num_attention_heads": run.model.backbone.config.num_attention_heads,
        }
    linears = extended(run, name)
    if isinstance(method, LoRA):
        return common | {
            "peft_type": "LORA",
            "r": method.rank,
            "lora_alpha": method.alpha,
            "lora_dropout": method.dropout,
            "target_modules": short_names(list(linears), run.model.backbone),
        }
    before = [path for path, linear in linears.items() if name in linear.input_extensions]
    return common | {
        "peft_type": "IA3",
        "target_modules": short_names(list(linears), run.model.backbone),
        "feedforward_modules": short_names(before, run.model.backbone),
    }


def short_names(paths: list[str], backbone: nn.Module) -> list[str]:
    """Last words of the paths where they mean these linear layers and no others, else the paths."""
    words = sorted({path.rpartition(".")[2] for path in paths})
    meant = {
        path
        for path, module in backbone.named_modules()
        if isinstance(module, nn.Linear) and path.rpartition(".")[2] in words
    }
    return words if meant == set(paths) else paths


def check_config(found: Mapping[str, Any], ours: Mapping[str, Any], file: Path) -> None:
    """Errors: ValueError where settings that were read are not those of the recipe."""
    for key in CHECKED:
        if key in ours and found.get(key) != ours[key]:
            raise ValueError(
                f"{file}: {key} is {found.get(key)!r}, and {ours[key]!r} by the recipe's method; "
                "give it the same"
            )
    for key in sorted(found.keys() - FREE - set(CHECKED)):
        if found[key] not in (*OFF, *PLAIN.get(key, ())):
            raise ValueError(
                f"{file}: {key} is {found[key]!r}, which vlds has no method for; train without it"
            )
