"""LoRA, (IA)^3 and prompts in the layout of Hugging Face's peft: adapter_config.json and
adapter_model.safetensors, which `PeftModel.from_pretrained` opens on the backbone.

A trained connector of an image-text model is in them too, whole (peft's `modules_to_save`). The
package peft is not needed to write them. If it is installed, it opens what was written and computes
the run's logits; and it has functions that merge adapters.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vlds.artifact import LoadedRun
from vlds.convert.adapters import AdapterFolders
from vlds.convert.bases import language_base
from vlds.convert.output import first_names, say
from vlds.convert.verify import Verification, difference
from vlds.models.generation.positions import AnswerPositions
from vlds.models.loading.gate import quiet
from vlds.models.methods.base import PEFT_MODEL, Library, Stored
from vlds.models.methods.context import TaskRouting
from vlds.models.methods.host import (
    ModelExtension,
    is_own,
    module_dict,
    states_type,
    take_out,
)
from vlds.models.model import BACKBONE_PREFIX
from vlds.runtime.json_files import lacks_memory

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

    def __init__(self, run: LoadedRun, base: str | None = None, *, alone: bool = False) -> None:
        """`base`: name of the backbone in adapter_config.json; default: its name on the hub.
        `alone`: the folder is for the method alone, whatever else trains beside the backbone.

        Errors: ValueError if peft cannot hold the run's method.
        """
        super().__init__(run)
        self.saved_modules: list[str] = []
        """Paths of the connector's modules, if it trains."""
        with suppress(ValueError) if alone else nullcontext():
            self.saved_modules = self.add_connector()
        if not (run.recipe.model.own_backbone or alone):  # else it is for what `convert hf` writes
            # The folder is for the model that the recipe names, so it must hold whatever differs.
            trained_by = run.model.trained_by
            if lost := sorted(trained_by.keys() - self.stored.keys()):
                by = trained_by[lost[0]]
                place = "tasks" if by == "heads" else f"model.train_{by}"
                place = f"methods.{by}" if by in run.recipe.methods else place
                raise ValueError(
                    f"{place}: it trains {first_names(lost, 2)}, which peft's folder does not "
                    "hold; use `vlds convert merge`, or train without them (LoRA: train_biases "
                    "false)"
                )
        # The backbone has its hub name if all that the folder does not hold is from there.
        rest = {name for name in self.state if name.startswith(BACKBONE_PREFIX)} - set(self.stored)
        from_hub = rest <= run.model.sources.names
        self.base = base or (language_base(run.recipe.model) if from_hub else None)

    def add_connector(self) -> list[str]:
        """Store the connector too, if it trains; the paths of its modules.

        Errors: ValueError if peft cannot hold all of it.
        """
        modules, bare = self.run.model.trained_connector()
        if bare:
            field = f"model.train_{self.run.recipe.model.trained_text[0]}"
            bare = [name.removeprefix(BACKBONE_PREFIX) for name in bare]
            raise ValueError(
                f"{field}: true, and peft holds whole modules of the backbone only, which "
                f"{first_names(bare, 3)} {'is' if len(bare) == 1 else 'are'} not in; use `vlds "
                "convert hf` or `vlds convert merge`, which hold all, or train with false"
            )
        if modules:
            config = {**self.layout.config, "modules_to_save": modules}
            self.layout = replace(self.layout, config=config)
        inside = tuple(f"{path}." for path in modules)
        for name in self.state:  # peft asks for a module's buffers too
            # Names as PeftModel has them, with its own prefix in place of ours.
            if name.removeprefix(BACKBONE_PREFIX).startswith(inside):
                key = PEFT_MODEL + name.removeprefix(BACKBONE_PREFIX)
                self.stored[name] = Stored((key,), stacked=False)
        return modules

    def config(self, adapter: str) -> dict[str, Any]:
        """peft's settings; what is left out has its defaults."""
        paths = {k: p for k, p in self.layout.config.items() if k.endswith("_modules")}
        modules = {key: short_names(named, self.backbone) for key, named in paths.items()}
        if any(modules[key] == named for key, named in paths.items()):
            modules = paths  # peft compares them with each other
        # peft chooses the class that wraps the model by `task_type`; the first two want models that
        # write.
        task: str | None = (
            "SEQ_2_SEQ_LM" if self.backbone.config.is_encoder_decoder else "CAUSAL_LM"
        )
        if not hasattr(self.backbone, "prepare_inputs_for_generation"):
            task = None
        common = {"task_type": task, "inference_mode": True}
        return {"base_model_name_or_path": self.base, **common, **self.layout.config, **modules}

    def check_config(self, config: Mapping[str, Any], file: Path) -> None:
        """Errors: ValueError if settings that were read differ from the recipe's."""
        ours = self.layout.config
        same = [*CHECKED, *sorted(ours.keys() - FREE - set(CHECKED))]
        for key in same:
            # Versions of peft differ in whether they write what is off, and as which value.
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

    def opened_on(self, model: Any, folder: Path) -> tuple[Any, dict[str, nn.Parameter]]:
        """A library's model with the method in a folder that was written, as peft trains it on; and
        key in the folder's file -> peft's weight.

        Errors: ValueError if peft is not installed, or cannot open the folder.
        """
        try:
            from peft import PeftModel
        except ImportError:
            raise ValueError("peft is not installed: pip install 'vlds[peft]'") from None
        device = str(model.device)
        try:
            with quiet(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                theirs = PeftModel.from_pretrained(
                    model, str(folder), is_trainable=True, torch_device=device
                )
        except Exception as error:  # peft's layers raise any
            if lacks_memory(error):
                raise
            raise ValueError(f"peft cannot open what was written ({error})") from error
        # peft names its weights otherwise than its files; what was read tells which is which.
        trained = [p for p in theirs.parameters() if p.requires_grad]
        weights: dict[str, nn.Parameter] = {}
        for key, read in load_file(folder / self.weight_files[0], device=device).items():
            for weight in trained:
                if weight.shape == read.shape and torch.equal(weight.to(read), read):
                    weights[key] = weight
        return theirs.eval(), weights

    @torch.no_grad()
    def prove(self, out: Path, verification: Verification) -> None:
        """Let peft open each folder on the backbone, in place of the method that it holds. The
        model's own memory is enough: its method is taken out."""
        # Imported here: the package is optional, and the layout does without it.
        try:
            from peft import PeftModel
        except ImportError:
            say("not opened with peft, which is not installed: pip install 'vlds[peft]'")
            return
        run = self.run
        # One task of each folder.
        folders = dict(zip(run.recipe.tasks, self.folders(), strict=False))
        expected = {task: verification.logits(run, task) for task in folders}
        dtype = states_type(run.model)
        take_out(self.backbone, self.name)
        for name in self.stored.keys() & dict(run.model.named_parameters()).keys():
            self.state[name].fill_(torch.nan)  # what the folder holds must come from there
        differences, theirs = {}, None
        say("opening what was written with peft")
        for number, (task, (below, _)) in enumerate(folders.items()):
            place, adapter = str(out / below), f"adapter{number}"
            try:
                with quiet(), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    if theirs is None:
                        theirs = PeftModel.from_pretrained(
                            self.backbone, place, adapter, torch_device="cpu"
                        )
                        picks_before_peft(self.backbone)
                    else:
                        theirs.load_adapter(place, adapter, torch_device="cpu")
                    theirs.set_adapter(adapter)
            except Exception as error:  # peft's layers raise any
                if lacks_memory(error):
                    raise
                raise ValueError(
                    f"peft cannot open what was written ({error}), so it is gone; use `vlds "
                    "convert merge`"
                ) from error
            if theirs.active_peft_config.is_prompt_learning:
                beside = module_dict(self.backbone, "extensions")
                beside[self.name] = PeftPrompts(theirs, run.model.context.routing)
            differences[task] = difference(expected[task], verification.logits(run, task))
        verification.judge(differences, dtype, by="peft's ")


def picks_before_peft(backbone: Any) -> None:
    """Where peft extends the head, let its layer, and not only the head inside, read the positions
    that are picked."""
    head: Any = backbone.get_output_embeddings()
    inside = getattr(getattr(head, "base_layer", None), "input_extensions", {})
    if AnswerPositions.name in inside:
        positions = inside.pop(AnswerPositions.name)
        head.register_forward_pre_hook(lambda _, given: (positions(*given),))


class PeftPrompts(ModelExtension):
    """The prompts of peft's model, which its own forward pass puts before the text."""

    gives_prompts = True

    def __init__(self, model: Any, routing: TaskRouting) -> None:
        super().__init__()
        # A tuple hides it from nn.Module: the backbone is inside.
        self.others, self.routing = (model,), routing

    def forward(self) -> Tensor:
        """(b, p, d), alike for all rows."""
        return self.routing.of_rows(self.others[0].get_prompt(1))


def short_names(paths: list[str], backbone: nn.Module) -> list[str]:
    """Last words of the paths where peft finds these modules by them and nothing else, else the
    paths."""
    # encoder.0.q, encoder.1.q -> q, unless something else is called q too: peft fails on a module
    # that it cannot wrap, such as what is around Gemma 4's layers, or a tensor of experts' weights.
    words = sorted({path.rpartition(".")[2] for path in paths})
    known = chain(backbone.named_modules(), backbone.named_parameters())
    meant = {path for path, _ in known if is_own(path) and path.rpartition(".")[2] in words}
    return words if meant == set(paths) else paths


def merge_function(how: str) -> Callable[[list[Tensor], Tensor, float], Tensor]:
    """peft's function of this name, which sums tensors with weights after taking entries away.

    Errors: ValueError if peft is missing.
    """
    try:
        from peft.utils import merge_utils
    except ImportError:
        raise ValueError(f"--how {how} needs the package peft: pip install 'vlds[peft]'") from None
    function: Callable[[list[Tensor], Tensor, float], Tensor] = getattr(merge_utils, how)
    return function
