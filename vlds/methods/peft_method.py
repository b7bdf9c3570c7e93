"""Methods of Hugging Face's peft (https://github.com/huggingface/peft): DoRA, rsLoRA, PiSSA, LoHa,
LoKr, VeRA, OFT and others, by peft's own names, settings and layers.

peft replaces a layer `q` by a layer of its own around it, and so renames `q.weight` to
`q.base_layer.weight`. Here peft's layer is taken out again and put behind the layer as an
extension, which sees the layer from outside:

    q.weight                                              the layer's own name
    q.extensions.NAME.tuner.lora_A.default.weight         peft's
"""

from __future__ import annotations

import importlib.util
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from vlds.methods.base import Case, Method, Toy
from vlds.methods.extended import (
    Extended,
    ExtendedLinear,
    LinearExtension,
    added_tensors,
    extended,
    foldable_weight,
    is_own,
    is_plain,
    take_first,
)
from vlds.methods.host import CROSS_ATTENTION, Host, find_modules
from vlds.methods.layouts import PEFT_MODEL, Layout, Library, Stored
from vlds.runtime.near_names import guess
from vlds.schema import UNDECAYED, OptimizerRule, OptimizerRules, Role

PeftType = Literal["LORA", "LOHA", "LOKR", "VERA", "OFT", "LN_TUNING"]
"""Names of peft's PeftType that are known to work here."""
ADAPTER = "default"
"""peft's own name of an adapter, inside the names of its tensors."""
TUNER = "tuner"
ABOUT_FILES = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version",
        "revision", "task_type",
    }
)  # fmt: skip
"""Settings that say what a file is for, and nothing about the method."""
WHICH_LAYERS = frozenset({"exclude_modules", "layers_pattern", "layers_to_transform"})
"""Settings that choose among layers; in files the layers' full paths replace them."""
REFUSED = {
    **dict.fromkeys(ABOUT_FILES, "vlds sets it"),
    "bias": "name the method BitFit beside this one",
    "modules_to_save": "name the method Full, or train the layers by a method of their own",
    "trainable_token_indices": "vlds has no method for it",
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
    "ensure_weight_tying": "vlds keeps tied layers tied",
    "save_projection": "vlds always saves it, so that a run opens the same everywhere",
}
"""Settings of peft that a recipe cannot have, and why or what to do."""
STARTS = ("gaussian", "olora", "orthogonal", "pissa")
"""Words that `init_lora_weights` may be, beside true and false."""
CHANGES_BASE = ("olora", "pissa")
"""Those that take the adapter's first product out of the layer's own weights."""


@dataclass(frozen=True, kw_only=True)
class Peft(Method):
    """A method of peft, which needs the package: pip install 'vlds[peft]'."""

    libraries: ClassVar[frozenset[Library]] = frozenset({"peft"})

    type: PeftType = "LORA"
    """peft's PeftType."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of peft's config class, by its names."""
    roles: Sequence[Role] = ()
    """Which layers; none if the settings hold target_modules."""

    def __post_init__(self) -> None:
        if bool(self.roles) == ("target_modules" in self.settings):
            raise ValueError(
                "roles: name roles, such as [attn_q, attn_v], or settings.target_modules, and not "
                "both"
            )
        if importlib.util.find_spec("peft") is None:
            raise ValueError("Peft needs the package peft; pip install 'vlds[peft]'")
        for key, reason in REFUSED.items():
            if key in self.settings:
                raise ValueError(f"settings.{key}: got {self.settings[key]!r}; {reason}")
        start = self.settings.get("init_lora_weights", True)
        if not isinstance(start, bool) and start not in STARTS:
            raise ValueError(
                f"settings.init_lora_weights: got {start}; choose true, false or one of "
                f"{', '.join(STARTS)}, which need no data and draw nothing for the backbone"
            )
        self.config(None)

    @property
    def changes_base(self) -> bool:
        """True if attaching changes the layers' own weights."""
        return self.settings.get("init_lora_weights") in CHANGES_BASE

    def config(self, target_modules: str | None) -> Any:
        """peft's config; `target_modules` is a pattern of paths, None for that of the settings.

        Errors: ValueError for settings that peft does not know, or refuses.
        """
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

        kind = PEFT_TYPE_TO_CONFIG_MAPPING[self.type]
        known = {f.name for f in fields(kind)} - REFUSED.keys()
        for key in self.settings:
            if key not in known:
                raise ValueError(
                    f"settings.{key}: {kind.__name__} of peft has no such setting; "
                    f"{guess(key, sorted(known)) or 'it has ' + ', '.join(sorted(known))}".strip()
                )
        settings = dict(self.settings)
        if target_modules is not None:
            settings["target_modules"] = target_modules
        try:
            return kind(**settings)
        except (TypeError, ValueError) as error:
            raise ValueError(f"settings: {error}") from None

    def attach(self, host: Host) -> list[nn.Parameter]:
        """Let peft put its layers into the model, and move each behind the layer that it is for.

        Errors: ValueError if peft cannot, or a layer is one of another method's.
        """
        found = tuners(host.model, self.config(self.pattern(host)))
        trained: list[nn.Parameter] = []
        for path, tuner in found.items():
            layer = tuner.base_layer
            set_module(host.model, path, layer)
            extension = PeftExtension(tuner, layer)
            extended(layer).extensions[host.name] = extension
            trained += [p for p in extension.parameters() if p.requires_grad]
            if self.changes_base:
                host.changed.append(layer.weight)
        return trained

    def pattern(self, host: Host) -> str | None:
        """A pattern of the paths of all layers that the roles name.

        Errors: ValueError if one of them cannot be extended.
        """
        optional = CROSS_ATTENTION if set(self.roles) - set(CROSS_ATTENTION) else ()
        paths: list[str] = []
        for role in self.roles:
            if role not in optional or role in host.targets.paths:
                paths += find_modules(host.model, host.targets, role)
        return "|".join(map(re.escape, dict.fromkeys(paths))) or None

    @torch.no_grad()
    def merge(self, name: str, model: nn.Module, tasks: Sequence[str]) -> None:
        """As peft merges each layer.

        Errors: ValueError if a layer is quantised, or peft cannot.
        """
        for layer in [m for m in model.modules() if isinstance(m, Extended)]:
            if name not in layer.extensions:
                continue
            if isinstance(layer, ExtendedLinear):
                foldable_weight(layer)
            extension = take_first(layer, name)
            assert isinstance(extension, PeftExtension)
            extension.fold(layer)

    def refusal(self, library: Library, model: Any) -> str | None:
        """peft's folders hold the adapter, and not the weights that it has changed."""
        if library == "peft" and self.changes_base:
            start = self.settings["init_lora_weights"]
            return (
                f"init_lora_weights: {start} changes the backbone's own weights, and peft's folder "
                "holds the adapter alone; use `vlds convert merge`"
            )
        return super().refusal(library, model)

    def layout(self, library: Library, name: str, model: Any) -> Layout:
        """peft's own names and settings."""
        added = added_tensors(model, name)
        keys = {t.name: peft_key(t.layer, t.leaf) for t in added}
        stored = {tensor: Stored((key,), stacked=False) for tensor, key in keys.items()}
        settings = json.loads(json.dumps(self.config(None).to_dict(), default=sorted))
        config = {k: v for k, v in settings.items() if k not in ABOUT_FILES | WHICH_LAYERS}
        paths = list(dict.fromkeys(tensor.layer for tensor in added))
        return Layout(stored, {**config, "peft_type": self.type, "target_modules": paths})

    @classmethod
    def cases(cls) -> Mapping[str, Case]:
        """Beside query and value of all attentions; LN_TUNING: all norms of T5 alone."""
        return {
            word: Case(cls(type=kind, settings=settings, roles=roles), **expected)
            for word, (kind, settings, roles, expected) in CASES.items()
        }


class PeftExtension(LinearExtension):
    """peft's layer around a layer, put behind it."""

    def __init__(self, tuner: Any, layer: nn.Module) -> None:
        super().__init__()
        del tuner._modules["base_layer"]
        self.tuner = tuner
        self.tuner.__dict__["base_layer"] = Outside(layer)
        renew(tuner)
        self.optimizer_rules: OptimizerRules = {
            f"{TUNER}.{name}": OptimizerRule() if is_matrix(p) else UNDECAYED
            for name, p in tuner.named_parameters()
        }
        self.behind_zeros = [f"{TUNER}.{name}" for name in behind_zeros(tuner)]

    def forward(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """What peft's layer gives for the layer's input, where the layer gives `outputs`."""
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
        tuner.__dict__["base_layer"] = layer
        if (norms := getattr(tuner, "ln_tuning_layers", None)) is not None:
            for name, parameter in norms[ADAPTER].named_parameters():
                layer.get_parameter(name).copy_(parameter)
            return
        try:
            tuner.merge(safe_merge=True, adapter_names=[ADAPTER])
        except (NotImplementedError, TypeError) as error:
            raise ValueError(f"peft cannot merge {type(tuner).__name__}: {error}") from None


class Outside:
    """A layer as peft's layer sees it: all that it has, and as its forward pass what it has already
    computed. It is no module, so it adds no names."""

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
        kind = self.layer.kind if isinstance(self.layer, Extended) else type(self.layer)
        result: Tensor = kind.forward(self.layer, inputs)
        return result

    def __getattr__(self, name: str) -> Any:
        if name in ("layer", "computed") or name.startswith("__"):
            raise AttributeError(name)  # not filled yet by pickle or deepcopy
        return getattr(self.layer, name)


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
            check_layer(kwargs["current_key"], target)
            # LoRA gathers for itself what it reads, and DeepSpeed forbids to do so twice.
            gathered = [] if config.peft_type == "LORA" else list(target.parameters())
            with gather_params_ctx(gathered) if gathered else nullcontext():
                super()._create_and_replace(config, name, target, *args, **kwargs)

    before = vars(model).get("peft_config")
    assert before is None, "a method has left its config behind"
    try:
        with warnings.catch_warnings():
            # It says of norms that it does not know their sizes, which it does not need.
            warnings.filterwarnings("ignore", message="Unsupported layer type", module="peft")
            Gathering(model, config, ADAPTER)
    except (AttributeError, KeyError, NotImplementedError, TypeError) as error:
        raise ValueError(f"peft cannot attach {config.peft_type.value}: {error}") from error
    finally:
        vars(model).pop("peft_config", None)
    named = model.named_modules()
    return {path: m for path, m in named if isinstance(m, BaseTunerLayer) and is_own(path)}


def check_layer(path: str, layer: nn.Module) -> None:
    """Errors: ValueError if peft's layer cannot stand behind a layer."""
    if not is_own(path):
        raise ValueError(
            f"target_modules mean {path}, which another method has added; name paths or roles"
        )
    if isinstance(layer, nn.Embedding):
        raise ValueError(f"{path} is an embedding; Peft extends linear layers and norms only")
    if "forward" in vars(layer):
        raise ValueError(f"{path}: its forward was replaced on the object itself; choose others")
    if not all(map(is_plain, layer.parameters(recurse=False))):
        raise ValueError(f"{path} is quantised, and peft's layers need its weights; use LoRA")


def set_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at a path."""
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def renew(tuner: nn.Module) -> None:
    """Make a tuner's parameters new objects.

    peft draws some and then gives them other values by `.data`; a tape of random draws knows the
    object by its first values.
    """
    for module in tuner.modules():
        for name, old in list(module._parameters.items()):
            if old is not None:
                module._parameters[name] = nn.Parameter(old.data, old.requires_grad)


def is_matrix(tensor: Tensor) -> bool:
    """True if at least two dimensions have more than one entry."""
    return sum(size > 1 for size in tensor.shape) > 1


def behind_zeros(tuner: nn.Module) -> list[str]:
    """Tensors that are multiplied by others that begin as zeros, so that the product is nothing."""
    named = {name: p for name, p in tuner.named_parameters() if p.requires_grad}
    zeros = [name for name, p in named.items() if not p.is_meta and not p.any()]
    alone = ("lora_magnitude_vector", "ln_tuning_layers")
    return [n for n in named if zeros and n not in zeros and not n.startswith(alone)]


def peft_key(layer: str, leaf: str) -> str:
    """Where peft's files have a tensor of a layer."""
    words = [word for word in leaf.split(".")[1:] if word != ADAPTER]
    if words[0] in ("vera_A", "vera_B"):
        return f"base_model.{words[0]}"  # one for all layers
    if words[0] == "lora_magnitude_vector":
        words = words[:1]
    return f"{PEFT_MODEL}{layer}.{'.'.join(words)}"


QUERY_VALUE: tuple[Role, ...] = ("attn_q", "attn_v", "cross_attn_q", "cross_attn_v")
NUM = 3 * Toy.layers * 2
"""Queries and values of the toy backbone."""
CASES: dict[str, tuple[PeftType, dict[str, Any], tuple[Role, ...], dict[str, Any]]] = {
    "": (
        "LORA",
        {"r": 2, "lora_alpha": 2, "use_dora": True},
        QUERY_VALUE,
        {"num_trained": NUM * (2 * 2 * Toy.width + Toy.width)},
    ),
    "rslora": (
        "LORA",
        {"r": 4, "lora_alpha": 2, "use_rslora": True},
        QUERY_VALUE,
        {"num_trained": NUM * 4 * 2 * Toy.width, "starts_frozen": True},
    ),
    "pissa": (
        "LORA",
        {"r": 2, "lora_alpha": 2, "init_lora_weights": "pissa"},
        QUERY_VALUE,
        {
            "num_trained": NUM * 2 * 2 * Toy.width,
            "refused": {"peft": "init_lora_weights: pissa changes the backbone's own weights"},
        },
    ),
    "loha": (
        "LOHA",
        {"r": 2, "alpha": 2},
        QUERY_VALUE,
        {"num_trained": NUM * 4 * 2 * Toy.width, "starts_frozen": True},
    ),
    "lokr": (
        "LOKR",
        {"r": 1, "alpha": 1, "decompose_factor": 4},
        QUERY_VALUE,
        {"num_trained": NUM * (4 * 4 + 2 * 4), "starts_frozen": True},
    ),
    "vera": (
        "VERA",
        {"r": 4},
        QUERY_VALUE,
        {"num_trained": NUM * (4 + Toy.width), "starts_frozen": True},
    ),
    "oft": (
        "OFT",
        {"oft_block_size": 4, "use_cayley_neumann": False},
        QUERY_VALUE,
        {"num_trained": NUM * 4 * 6, "starts_frozen": True},
    ),
    "norms": ("LN_TUNING", {}, ("norm",), {"starts_frozen": True}),
}
"""Word -> type, settings, roles, and what the contract tests expect."""
