"""What vLLM asks of a folder of peft before it serves it as LoRA, in our words: by its
documentation and its loader of 2026 (settings of adapter_config.json, names of tensors). vLLM
itself is not run."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from safetensors import safe_open

REQUIRED = ("r", "lora_alpha", "target_modules")
START, ENDS = "base_model.model.", (".lora_A.weight", ".lora_B.weight")
RENAMED = {
    "model.language_model.": "language_model.model.",
    "model.visual.": "visual.",
    "model.vision_tower.": "vision_tower.",
}
"""What modules' names begin with in transformers -> in vLLM; Idefics3 and SmolVLM keep theirs."""
LANGUAGE = ("language_model.model.", "model.text_model.", "model.layers.")
"""What modules' names of the language model begin with in vLLM."""


def complaints(folder: Path, linears: Collection[str], max_rank: int = 16) -> list[str]:
    """What vLLM refuses of a folder. `linears`: last words of the model's linear layers;
    `max_rank`: vLLM's `--max-lora-rank`."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    found = [f"{name} is missing" for name in REQUIRED if name not in config]
    if config.get("r", 0) > max_rank:
        found.append(f"rank {config['r']} is above {max_rank}")
    if config.get("bias", "none") != "none":
        found.append("biases")
    found += [name for name in ("modules_to_save", "use_dora") if config.get(name)]
    for name in tensor_names(folder):
        if not (name.startswith(START) and name.endswith(ENDS)):
            found.append(f"{name} is no matrix of LoRA")
        elif name.split(".")[-3] not in linears:
            found.append(f"{name} is of no linear layer")
    return found


def tensor_names(folder: Path) -> list[str]:
    """The tensors of a folder."""
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        return list(file.keys())


def needs_tower_option(folder: Path) -> bool:
    """True if not all layers are the language model's, so that vLLM serves them with
    `--enable-tower-connector-lora` alone."""
    layers = {name.removeprefix(START) for name in tensor_names(folder)}
    return not all(renamed(layer).startswith(LANGUAGE) for layer in layers)


def renamed(layer: str) -> str:
    """A layer's name in vLLM."""
    for old, new in RENAMED.items():
        if layer.startswith(old):
            return new + layer.removeprefix(old)
    return layer
