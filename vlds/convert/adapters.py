"""Bottleneck adapters and Compacters in the layout of the library `adapters` (AdapterHub):
adapter_config.json and pytorch_adapter.bin, which `model.load_adapter(FOLDER)` opens; and what that
layout has in common with peft's (vlds/convert/peft.py): folders of one adapter each, for all tasks
or one for each.

    OUT/adapter_config.json, weights                 one for all tasks
    OUT/TASK/adapter_config.json, weights            one each

The library itself is not needed. Its file of weights is torch.save's, since that is what it opens
unless told otherwise; it holds tensors alone.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from vlds.artifact import LoadedRun
from vlds.convert.output import Kind, check_plain, first_names, save_torch, say
from vlds.convert.target import RunFiles, check_layout, read_settings, read_weights
from vlds.models.methods.base import Library, Stored
from vlds.models.methods.host import added_tensors
from vlds.models.model import BACKBONE_PREFIX

CONFIG = "adapter_config.json"


class AdapterFolders(RunFiles):
    """How a library, peft or adapters, writes a run's method."""

    kind: ClassVar[Kind] = "folder"
    is_whole = False
    library: ClassVar[Library]
    weight_files: ClassVar[tuple[str, ...]]
    """Names that the file of weights may have; ours has the first."""

    def __init__(self, run: LoadedRun) -> None:
        """Errors: ValueError, with the reason, if the library cannot hold the run's method."""
        super().__init__(run)
        self.backbone = run.model.backbone
        library = self.library
        methods = {n: m for n, m in run.recipe.methods.items() if added_tensors(run.model, n)}
        for name, method in methods.items():
            reason = method.refusal(library, self.backbone)
            if reason is None and method.part == "vision" and run.recipe.model.own_backbone:
                reason = f"{library} knows the text backbone alone; use hf"
            if reason is not None:
                raise ValueError(f"methods.{name}: {reason}")
        if len(methods) != 1:
            raise ValueError(
                f"methods: {library}'s layout holds one method beside the backbone, the recipe has "
                f"{', '.join(methods) or 'none'}; `vlds convert hf` writes the backbone, "
                "`vlds convert merge` folds methods"
            )
        ((self.name, self.method),) = methods.items()
        self.layout = self.method.layout(self.library, self.name, self.backbone)
        self.state = {name: tensor.detach() for name, tensor in run.model.unique_state()}
        """Our tensors, tied ones once."""
        # A layout may name a tied tensor twice; the state has it once.
        names = {f"{BACKBONE_PREFIX}{name}": stored for name, stored in self.layout.tensors.items()}
        self.stored = {name: stored for name, stored in names.items() if name in self.state}
        """Tensor of ours, as Model names it -> where it is stored."""

    @abstractmethod
    def config(self, adapter: str) -> dict[str, Any]:
        """The settings of an adapter, by its name."""

    @abstractmethod
    def check_config(self, config: Mapping[str, Any], file: Path) -> None:
        """Errors: ValueError if settings that were read differ from the recipe's."""

    @abstractmethod
    def write_weights(self, tensors: dict[str, Tensor], file: Path) -> None:
        """Write the file of weights."""

    def folders(self) -> list[tuple[str, str]]:
        """Folder below the top and name of the adapter, one for each slice of the weights."""
        # The library's adapters are not stacked: tasks with their own slices have one each.
        tasks = self.run.recipe.tasks
        if getattr(self.method, "sharing", "single") == "single" or len(tasks) == 1:
            return [("", self.name)]
        return [(check_plain(task, "tasks"), task) for task in tasks]

    def write(self, out: Path) -> None:
        """Fill an empty folder."""
        if self.run.model.heads:
            say("left out: the tasks' heads, for which the library has no place; hf keeps them")
        for index, (below, adapter) in enumerate(self.folders()):
            folder = out / below
            folder.mkdir(exist_ok=True)
            text = json.dumps(self.config(adapter), indent=2, sort_keys=True)
            (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
            # Cloned: safetensors refuses tensors that share memory, as slices of a stack do, and
            # torch.save would write the whole stack.
            tensors = {
                key.format(task=adapter): piece(self.state[name], stored, index).clone()
                for name, stored in self.stored.items()
                for key in stored.keys
            }
            self.write_weights(tensors, folder / self.weight_files[0])

    def read(self, path: Path) -> dict[str, Tensor]:
        """Our tensors from all folders."""
        # Each folder fills its task's slices of these.
        tensors = {name: torch.zeros(self.state[name].shape) for name in self.stored}
        for index, (below, adapter) in enumerate(self.folders()):
            folder = path / below
            config = read_settings(folder / CONFIG)
            self.check_config(config, folder / CONFIG)
            weights = read_weights(folder, *self.weight_files)
            # An adapter may have been saved under another name, which its keys repeat.
            adapter = str(config.get("name") or adapter)
            keys = {
                name: [key.format(task=adapter) for key in stored.keys]
                for name, stored in self.stored.items()
            }
            # Aliases stand for one tensor: any of them will do.
            missing = [n[0] for n in keys.values() if not any(key in weights for key in n)]
            unknown = sorted(weights.keys() - {key for n in keys.values() for key in n})
            if missing or unknown:
                raise ValueError(
                    f"{folder} {'lacks' if missing else 'holds'} "
                    f"{first_names(missing or unknown, 1)}, which the recipe's method "
                    f"{'has' if missing else 'lacks'}; its settings must be those of the files"
                )
            for name, stored in self.stored.items():
                weight = next(weights[key] for key in keys[name] if key in weights)
                target = piece(tensors[name], stored, index)
                if weight.shape != target.shape or not weight.is_floating_point():
                    raise ValueError(
                        f"{keys[name][0]}: {weight.dtype} {tuple(weight.shape)} in {folder}, "
                        f"floats {tuple(target.shape)} by the recipe; the recipe's sizes must be "
                        "those of the files"
                    )
                # What tasks share stands in each folder, and is one tensor here.
                is_shared = not stored.stacked or len(tensors[name]) == 1
                if is_shared and index > 0 and not torch.equal(target, weight.to(target.dtype)):
                    raise ValueError(
                        f"{name} differs from task to task, and is one by the recipe; give the "
                        "method sharing: multiple"
                    )
                target.copy_(weight)
        return tensors


def piece(tensor: Tensor, stored: Stored, index: int) -> Tensor:
    """A view of one task's slice of a tensor, or of what all tasks share, in the library's
    shape."""
    # (tasks, ...) -> (...). A stack of length 1 belongs to all tasks.
    if stored.stacked:
        tensor = tensor[index if len(tensor) > 1 else 0]
    return tensor if stored.shape is None else tensor.view(stored.shape)


def plain(loaded: LoadedRun) -> LoadedRun:
    """The run without what its methods need only in training, such as prompts' networks."""
    methods = dict(loaded.recipe.methods)
    for name, method in loaded.recipe.methods.items():
        if method.merges_to_itself:
            module = loaded.model.get_submodule(loaded.model.parts[method.part].path)
            methods.update(method.merge(name, module, list(loaded.recipe.tasks)))
    return replace(loaded, recipe=replace(loaded.recipe, methods=methods))


VERSION = "adapters.1.3.0"
"""The version of the library whose layout this is, as it writes it into its files."""
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
        check_layout(run, self.library)
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
            # The rank means something only where the matrices are factorised.
            theirs = settings.get(key, DEFAULTS[key])
            if theirs != ours[key] and not (key == "phm_rank" and not ours["factorized_phm_W"]):
                raise ValueError(
                    f"{file}: {key} is {theirs!r}, and {ours[key]!r} by the recipe's method; vlds "
                    "computes the latter, so give the method the same, if it can have that"
                )

    def write_weights(self, tensors: dict[str, Tensor], file: Path) -> None:
        """A file of torch.save."""
        save_torch(tensors, file)
