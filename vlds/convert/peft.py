"""LoRA, (IA)^3 and prompts in the layout of Hugging Face's peft: adapter_config.json and
adapter_model.safetensors, which `PeftModel.from_pretrained` opens on the text backbone.

peft itself is not needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from safetensors.torch import save_file
from torch import Tensor, nn

from vlds.artifact import LoadedRun
from vlds.convert.adapter_folders import AdapterFolders
from vlds.methods.layouts import Library

FREE = {
    # What it is for, and who wrote it.
    "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision",
    "task_type",
    # Layers and sizes: names and shapes of the weights say the same.
    "exclude_modules", "feedforward_modules", "layers_pattern", "layers_to_transform",
    "num_attention_heads", "num_layers", "target_modules", "token_dim",
    # Training.
    "beta1", "beta2", "deltaT", "orth_reg_weight", "target_r", "tfinal", "tinit", "total_step",
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


class PeftFolders(AdapterFolders):
    """How peft writes a run's method."""

    library: ClassVar[Library] = "peft"
    weight_files: ClassVar[tuple[str, ...]] = ("adapter_model.safetensors", "adapter_model.bin")

    def __init__(self, run: LoadedRun, base: str | None = None) -> None:
        """`base`: name of the backbone in adapter_config.json.

        Errors: ValueError if peft cannot hold the run's method.
        """
        super().__init__(run)
        if "connector" in run.model.trained_by.values():
            raise ValueError(
                "model: its connector trains too, and peft's folder holds the method alone; use "
                "`vlds convert merge`, or train with train_connector: false"
            )
        self.base = base

    def config(self, adapter: str) -> dict[str, Any]:
        """peft's settings; what is left out has its defaults."""
        paths = {k: p for k, p in self.layout.config.items() if k.endswith("_modules")}
        modules = {key: short_names(named, self.backbone) for key, named in paths.items()}
        if any(modules[key] == named for key, named in paths.items()):
            modules = paths  # peft compares them with each other
        apart = self.backbone.config.is_encoder_decoder
        common = {"task_type": "SEQ_2_SEQ_LM" if apart else "CAUSAL_LM", "inference_mode": True}
        return {"base_model_name_or_path": self.base, **common, **self.layout.config, **modules}

    def check_config(self, config: Mapping[str, Any], file: Path) -> None:
        """Errors: ValueError if settings that were read differ from the recipe's."""
        ours = self.layout.config
        same = [*CHECKED, *sorted(ours.keys() - FREE - set(CHECKED))]
        for key in same:
            both_off = ours.get(key) in OFF and config.get(key) in OFF
            if key in ours and config.get(key) != ours[key] and not both_off:
                raise ValueError(
                    f"{file}: {key} is {config.get(key)!r}, and {ours[key]!r} by the recipe's "
                    "method; give it the same"
                )
        for key in sorted(config.keys() - FREE - set(same)):
            if config[key] not in (*OFF, *PLAIN.get(key, ())):
                raise ValueError(
                    f"{file}: {key} is {config[key]!r}, which vlds has no method for; train "
                    "without it"
                )

    def write_weights(self, tensors: dict[str, Tensor], file: Path) -> None:
        """As peft and transformers mark it."""
        save_file(tensors, file, metadata={"format": "pt"})


def short_names(paths: list[str], backbone: nn.Module) -> list[str]:
    """Last words of the paths where they mean these linear layers and no others, else the paths."""
    words = sorted({path.rpartition(".")[2] for path in paths})
    meant = {
        path
        for path, module in backbone.named_modules()
        if isinstance(module, nn.Linear) and path.rpartition(".")[2] in words
    }
    return words if meant == set(paths) else paths
