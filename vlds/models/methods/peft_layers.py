"""peft's settings and types that a recipe can have, and peft's layers behind a model's own.

peft wraps a layer `q` in its own layer, and so renames `q.weight` to `q.base_layer.weight`. Here
peft's layer is taken out again and put behind the layer as an
extension, which sees the layer from outside:

    q.weight                                              the layer's own name
    q.extensions.NAME.tuner.lora_A.default.weight         peft's
"""

from __future__ import annotations

import importlib.util
import re
import textwrap
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import fields
from typing import Any

from torch import Tensor, nn

from vlds.models.methods.host import Extended, LinearExtension, extended, is_own, is_plain
from vlds.runtime.checks import guess
from vlds.runtime.json_files import lacks_memory
from vlds.runtime.limited import limited
from vlds.schema import UNDECAYED, OptimizerRule, OptimizerRules

ADALORA = "ADALORA"
TYPES = (
    ADALORA, "C3A", "DELORA", "FOURIERFT", "GRALORA", "HIRA", "HRA", "LN_TUNING", "LOHA", "LOKR",
    "LORA", "MISS", "OFT", "VERA", "WAVEFT",
)  # fmt: skip
"""Names of peft's PeftType that are known to work here."""
RERUN = ("HRA", "LN_TUNING", "OFT")
"""Types that compute the layer again from its input, whatever stands behind it already."""
READS_WEIGHTS = ("HIRA",)
"""Types that compute from the layer's weights, which folding what stands before them changes. So
does DoRA, a setting of LORA."""
OTHER_TYPES = {
    "IA3": "use vlds' own IA3",
    "PROMPT_TUNING": "use vlds' own PromptTuning",
    "PREFIX_TUNING": "use vlds' own PrefixTuning",
    "TRAINABLE_TOKENS": (
        "it takes the place of the embedding table, and methods extend linear layers and norms; "
        "vlds' own PromptTuning trains embeddings before the text"
    ),
}
"""Other names of PeftType -> what to do."""
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
    "modules_to_save": "name the method Full, or train the layers by another method",
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
"""Settings that AdaLoRA reads; peft's config has all settings of LoRA too."""
ADALORA_LEAST = {"init_r": 1, "target_r": 1, "tinit": 0, "tfinal": 0, "deltaT": 1}
"""AdaLoRA's settings that are whole numbers -> the least value."""
STARTS = ("gaussian", "olora", "orthogonal", "pissa")
"""Words that `init_lora_weights` may be, beside true and false."""
CHANGES_BASE = ("olora", "pissa")
"""Those of `STARTS` that take the adapter's first product out of the layer's own weights."""


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
    is_adalora = type == ADALORA
    names = ADALORA_SETTINGS | LAYER_SETTINGS if is_adalora else {f.name for f in fields(kind)}
    known = sorted(names.difference(REFUSED))
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
    given = dict(settings)
    if is_adalora:
        # peft needs a number of steps here; `RankBudget` sets the run's own.
        given["total_step"] = shortest_schedule(settings)
    if target_modules is not None:
        given["target_modules"] = target_modules
    try:
        return kind(**given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"settings: {error}") from None


def shortest_schedule(settings: Mapping[str, Any]) -> int:
    """The least number of steps in which AdaLoRA's budget can fall.

    Errors: ValueError for settings with which it cannot fall, and for numbers that peft takes, and
    fails over in the first steps.
    """
    for name, least in ADALORA_LEAST.items():
        value = settings.get(name, least)
        if type(value) is not int or value < least:
            raise ValueError(f"settings.{name}: got {value!r}; give a whole number from {least} on")
    for name in ("beta1", "beta2"):
        value = settings.get(name, 0.85)
        if type(value) is not float or not 0 < value < 1:
            raise ValueError(f"settings.{name}: got {value!r}; give a number between 0 and 1")
    first, last = settings.get("init_r", 12), settings.get("target_r", 8)
    if not 1 <= last < first:
        raise ValueError(
            f"settings: init_r is {first} and target_r {last}; AdaLoRA's budget falls from the one "
            "to the other, so give a smaller target_r"
        )
    steps: int = settings.get("tinit", 0) + settings.get("tfinal", 0) + 1
    return steps


ADAPTER = "default"
"""peft's own name of an adapter, inside the names of its tensors."""
TUNER = "tuner"
"""Name of peft's layer in its extension."""


def put_behind(model: nn.Module, name: str, config: Any) -> list[tuple[nn.Module, PeftExtension]]:
    """Put peft's layers behind the layers that its config means; pairs of both.

    Errors: ValueError if peft cannot, or means layers of other methods.
    """
    pairs = []
    kind = config.peft_type.value
    reads_weights = kind in READS_WEIGHTS or bool(getattr(config, "use_dora", False))
    for path, tuner in tuners(model, config).items():
        layer: nn.Module = tuner.base_layer
        # Put the model's own layer back into the place that peft gave to its layer.
        parent, _, child = path.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)
        extensions = getattr(layer, "extensions", {})
        others = list(extensions)
        if others and kind in RERUN:
            raise ValueError(
                f"{kind} computes {path} again, without {others[0]}, which stands behind it; name "
                "it earlier in the recipe"
            )
        if others and reads_weights:
            raise ValueError(
                f"{'DoRA' if kind == 'LORA' else kind} computes from the weights of {path}, which "
                f"{others[0]}, behind it already, changes once it is folded; name it earlier in "
                "the recipe"
            )
        readers = [n for n, other in extensions.items() if getattr(other, "reads_weights", False)]
        if readers and getattr(config, "init_lora_weights", None) in CHANGES_BASE:
            raise ValueError(
                f"init_lora_weights: {config.init_lora_weights} changes the weights of {path}, "
                f"from which {readers[0]} computes; use one of the two"
            )
        extension = PeftExtension(tuner, layer)
        extension.reads_weights = reads_weights
        extended(layer).extensions[name] = extension
        pairs.append((layer, extension))
    return pairs


def tuners(model: nn.Module, config: Any) -> dict[str, Any]:
    """Let peft replace layers of a model: path -> its layer there.

    Under ZeRO-3 each layer's weights are whole while peft makes its own. Errors: ValueError if
    peft cannot, or means layers of other methods.
    """
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.integrations import gather_params_ctx

    kind: Any = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]

    class Gathering(kind):
        def _create_and_replace(
            self, config: Any, name: str, target: nn.Module, *args: Any, **kwargs: Any
        ) -> None:
            path = kwargs["current_key"]
            if not is_own(path):
                raise ValueError(
                    f"target_modules mean {path}, which another method has added; name paths or "
                    "roles"
                )
            if isinstance(target, nn.Embedding):
                raise ValueError(
                    f"{path} is an embedding; Peft extends linear layers and norms only"
                )
            if "forward" in vars(target):
                raise ValueError(
                    f"{path}: its forward was replaced on the object itself; choose others"
                )
            if not all(map(is_plain, target.parameters(recurse=False))):
                raise ValueError(
                    f"{path} is quantised, and peft's layers need its weights; use LoRA"
                )
            # peft's LoRA gathers for itself what it reads (0.21), and DeepSpeed refuses to gather
            # a parameter twice.
            gathered = [] if config.peft_type == "LORA" else list(target.parameters())
            with gather_params_ctx(gathered) if gathered else nullcontext():
                super()._create_and_replace(config, name, target, *args, **kwargs)

    before = vars(model).get("peft_config")
    assert before is None, "a method has left its config behind"
    try:
        with warnings.catch_warnings():
            # peft 0.21 says of norms that it does not know their sizes, which it does not need.
            warnings.filterwarnings("ignore", message="Unsupported layer type", module="peft")
            Gathering(model, config, ADAPTER)
    except ValueError as error:
        # peft's message names every layer that it has not found, and there may be 100,000.
        raise ValueError(textwrap.shorten(str(error), 1000)) from error
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        if lacks_memory(error):
            raise
        raise ValueError(f"peft cannot attach {config.peft_type.value}: {error}") from error
    finally:
        # peft leaves its config on the model, and would take the next method's for the same one.
        vars(model).pop("peft_config", None)
    named = model.named_modules()
    return {path: m for path, m in named if isinstance(m, BaseTunerLayer) and is_own(path)}


def check_patterns(model: nn.Module, config: Any) -> None:
    """Try the patterns and names of layers in a config on a model, within limits: a pattern of a
    few letters may backtrack for years.

    Errors: ValueError if one of them is not a valid pattern, or matching takes too long.
    """
    from peft.tuners.tuners_utils import check_target_module_exists

    paths = [path for path, _ in model.named_modules()]
    # peft matches these two kinds of patterns only when it makes its layers, in this form.
    of_paths = [
        pattern
        for name in ("rank_pattern", "alpha_pattern")
        for pattern in getattr(config, name, None) or ()  # AdaLoRA's has None
    ]

    def try_all() -> str:
        for path in paths:
            check_target_module_exists(config, path)
            for pattern in of_paths:
                re.match(rf"(.*\.)?({pattern})$", path)
        return ""

    try:
        limited(try_all)
    except ValueError as error:
        raise ValueError(
            f"settings: looking for layers by their names fails: {error}; give simpler patterns, "
            f"or fewer names, in {', '.join(BY_NAME)}"
        ) from None


def rank_allocator(model: Any, config: Any) -> Any:
    """peft's object that shares out AdaLoRA's budget. `model`: anything with named parameters."""
    from peft.tuners.adalora.layer import RankAllocator

    return RankAllocator(model, config, ADAPTER)


class PeftExtension(LinearExtension):
    """peft's layer around a layer, put behind it."""

    reads_weights = False
    """True if it computes from the layer's weights."""

    def __init__(self, tuner: Any, layer: Any) -> None:
        super().__init__()
        # The layer holds the extension, and so must not be a child inside it.
        del tuner._modules["base_layer"]
        if (ranks := tuner._modules.pop("ranknum", None)) is not None:
            # AdaLoRA's first rank, which peft 0.21 keeps as a frozen weight and does not store.
            tuner.__dict__["ranknum"] = dict.fromkeys(ranks, float(tuner.r[ADAPTER]))
        for parameter in tuner.parameters():
            if parameter.is_meta and is_plain(layer.weight):
                # Off the meta device, peft itself gives them the layer's type.
                parameter.data = parameter.data.to(layer.weight.dtype)
        self.tuner = tuner
        # Straight into __dict__, since nn.Module would register a layer as a child.
        self.tuner.__dict__["base_layer"] = Outside(layer)
        # peft draws some parameters and then gives them other values by `.data`; a tape of random
        # draws knows an object by its first values, so each becomes a new object.
        for module in tuner.modules():
            for name, old in list(module._parameters.items()):
                if old is not None:
                    module._parameters[name] = nn.Parameter(old.data, old.requires_grad)
        # Decay is for matrices: at least two dimensions with more than one entry.
        self.optimizer_rules: OptimizerRules = {
            f"{TUNER}.{name}": OptimizerRule() if sum(n > 1 for n in p.shape) > 1 else UNDECAYED
            for name, p in tuner.named_parameters()
        }
        # Some parameters are multiplied by others that begin as zeros. Magnitudes and norms stand
        # alone.
        trained = {name: p for name, p in tuner.named_parameters() if p.requires_grad}
        zeros = [name for name, p in trained.items() if not p.is_meta and not p.any()]
        alone = ("lora_magnitude_vector", "ln_tuning_layers")
        self.multipliers = [
            f"{TUNER}.{name}"
            for name in trained
            if name.startswith((*alone, "delora_lambda")) and not name.endswith("bias")
        ]
        self.behind_zeros = [
            f"{TUNER}.{name}"
            for name in trained
            if zeros and name not in zeros and not name.startswith(alone)
        ]

    def forward(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """The output of peft's layer for the layer's input, given the layer's own `outputs`."""
        outside: Outside = self.tuner.base_layer
        outside.computed = inputs, outputs
        try:
            result: Tensor = self.tuner(inputs)
        finally:
            outside.computed = None
        return result

    def fold(self, layer: Extended) -> None:
        """Change the layer's own weights as peft does."""
        tuner = self.tuner
        tuner.__dict__["base_layer"] = layer  # `merge` writes into the real layer's weight
        if (norms := getattr(tuner, "ln_tuning_layers", None)) is not None:
            for name, parameter in norms[ADAPTER].named_parameters():
                layer.get_parameter(name).copy_(parameter)
            return
        try:
            tuner.merge(safe_merge=True, adapter_names=[ADAPTER])
        except (NotImplementedError, RuntimeError, TypeError) as error:
            if lacks_memory(error):
                raise
            raise ValueError(
                f"peft cannot merge {type(tuner).__name__}: {str(error).rstrip('.')}; use `vlds "
                "convert hf`, which keeps it beside the backbone"
            ) from None


class Outside:
    """A layer as peft's layer sees it: its attributes, and what it has already computed in place of
    its forward pass. Not an nn.Module, so it adds no names."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.computed: tuple[Tensor, Tensor] | None = None
        """An input of the layer, and its output so far."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """The output for the input, computed again only for a changed input."""
        assert self.computed is not None, "peft's layer ran without the layer that it is behind"
        known, outputs = self.computed
        if inputs is known:
            return outputs
        # Without the extensions, of which this one is running.
        kind = self.layer.kind if isinstance(self.layer, Extended) else type(self.layer)
        result: Tensor = kind.forward(self.layer, inputs)
        return result

    def __getattr__(self, name: str) -> Any:
        if name in ("layer", "computed") or name.startswith("__"):
            raise AttributeError(name)  # not filled yet by pickle or deepcopy
        return getattr(self.layer, name)
