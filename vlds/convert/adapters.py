"""Bottleneck adapters and Compacters in the layout of the library `adapters` (AdapterHub):
adapter_config.json and pytorch_adapter.bin, which `model.load_adapter(FOLDER)` opens.

The library itself is not needed. Its file of weights is torch.save's, since that is what it opens
unless told otherwise; it holds tensors alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from vlds.artifact import LoadedRun
from vlds.convert.adapter_folders import AdapterFolders
from vlds.convert.output import save_torch
from vlds.convert.target import joint_model
from vlds.methods.layouts import Library

VERSION = "adapters.1.3.0"
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


class AdaptersFolders(AdapterFolders):
    """How the library writes a run's method."""

    library: ClassVar[Library] = "adapters"
    weight_files: ClassVar[tuple[str, ...]] = ("pytorch_adapter.bin", "adapter.safetensors")

    def __init__(self, run: LoadedRun) -> None:
        """Errors: ValueError if the library cannot hold the run's method or model."""
        joint_model(run, self.library)
        super().__init__(run)

    def config(self, adapter: str) -> dict[str, Any]:
        """The library's settings, and of which model they are."""
        model = self.backbone
        return {
            "config": DEFAULTS | self.layout.config,
            "hidden_size": model.config.d_model,
            "model_class": type(model).__name__,
            "model_name": "",
            "model_type": model.config.model_type,
            "name": adapter,
            "version": VERSION,
        }

    def check_config(self, config: Mapping[str, Any], file: Path) -> None:
        """Errors: ValueError if settings that were read differ from the recipe's."""
        settings, model_type = config.get("config"), self.backbone.config.model_type
        if not isinstance(settings, dict):
            raise ValueError(f"{file} has no `config`, so it is not from the library adapters")
        if config.get("model_type") not in (None, model_type):
            raise ValueError(
                f"{file}: model_type is {config['model_type']!r}, and the recipe's backbone a "
                f"{model_type}"
            )
        ours = DEFAULTS | self.layout.config
        for key in sorted(ours.keys() - OF_TRAINING - (set() if ours["phm_layer"] else OF_PHM)):
            theirs = settings.get(key, DEFAULTS[key])
            if theirs != ours[key] and not (key == "phm_rank" and not ours["factorized_phm_W"]):
                raise ValueError(
                    f"{file}: {key} is {theirs!r}, and {ours[key]!r} by the recipe's method; vlds "
                    "computes the latter, so give the method the same, if it can have that"
                )

    def write_weights(self, tensors: dict[str, Tensor], file: Path) -> None:
        """A file of torch.save."""
        save_torch(tensors, file)
