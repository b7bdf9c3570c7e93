"""Which weights of each method decay, and which belong to a single task."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from tests.methods.test_methods import MAKERS
from tests.models.toys import backbone, build
from vlds.backbones import T5, Backbone, Bart
from vlds.methods import DecoderPromptTuning, Full, Method
from vlds.methods.base import LinearExtension, extend_linear, find_linears
from vlds.models.optimizer_rules import optimizer_rules
from vlds.models.vl_model import VLModel
from vlds.schema import STACKED, UNDECAYED, OptimizerRules, TargetModules
from vlds.vision import ConvNet

BOTTLENECK = {"down_weight": 1, "down_bias": 0, "up_weight": 1, "up_bias": 0}
PHM = {"down_rule": 1, "up_rule": 1, "down_bias": 0, "up_bias": 0}
THIN = {"down_left": 1, "down_right": 1, "up_left": 1, "up_right": 1}
GENERATOR = {
    f"{half}_{kind}.{leaf}": int((kind, leaf) == ("weight", "weight"))
    for half in ("down", "up")
    for kind in ("weight", "bias")
    for leaf in ("weight", "bias")
}
HYPERNET = {
    "task_embeddings.weight": 1, "layer_embeddings.weight": 1, "hidden.weight": 1, "hidden.bias": 0,
    "project.weight": 1, "project.bias": 0, "norm.weight": 0, "norm.bias": 0, **GENERATOR,
}  # fmt: skip
NETWORK = {
    "network.table": 1, "network.hidden_weight": 1, "network.hidden_bias": 0,
    "network.output_weight": 1, "network.output_bias": 0,
}  # fmt: skip
NORMS = {f"{place}_norm.{leaf}": 0 for place in ("pre", "post") for leaf in ("weight", "bias")}
ADDED: dict[str, dict[str, int]] = {
    "full": {},
    **dict.fromkeys(["single", "multiple", "half_shared_up", "half_shared_down"], BOTTLENECK),
    "norms": BOTTLENECK | NORMS,
    "identity": BOTTLENECK,
    "no cross": BOTTLENECK,
    **dict.fromkeys(["compacter", "compacters"], PHM | {"down_blocks": 1, "up_blocks": 1}),
    # One rule is common to all halves, under its first name.
    "thin compacters": {"down_rule": 1, "down_bias": 0, "up_bias": 0, **THIN},
    "low rank": {"down_bias": 0, "up_bias": 0, **THIN},
    "hyperformer": HYPERNET,
    "hyperformer, kinds": HYPERNET | {"kind_embeddings.weight": 1},
    "lora": {"a": 1, "b": 1},
    "loras": {"a": 1, "b": 1},
    "ia3": {"factors": 0},
    "ia3s": {"factors": 0},
    **dict.fromkeys(["prompts", "prompts per task", "prefixes", "prefixes per task"], NETWORK),
    "bare prompts": {"network.table": 1},
    "bare prefixes": {"network.table": 1},
    "bitfit": {"bias": 0},
    "bitfit everywhere": {"bias": 0},
    "decoder prompts": {f"decoder_{name}": decays for name, decays in NETWORK.items()},
}
"""Method -> its tensors, of one place -> 1 if they decay, else 0."""


PLACE = re.compile(r".*extensions\.method\.(stacks\.\w+\.)?(generators\.\w+\.)?")
"""Where a method's tensors are."""


def added(model: VLModel) -> dict[str, int]:
    """What the method has added, in the form of ADDED."""
    return {
        PLACE.sub("", name): int(rule.decays)
        for name, rule in optimizer_rules(model).items()
        if PLACE.match(name)
    }


NOTHING_ADDED = [("decoder prompts", T5), ("bitfit", Bart)]
"""The first is for BART alone, and BART has its own biases."""


@pytest.mark.parametrize(
    ("name", "family"), [pair for pair in product(ADDED, (T5, Bart)) if pair not in NOTHING_ADDED]
)
def test_what_decays_of_each_method(name: str, family: type[Backbone], tmp_path: Path) -> None:
    maker = MAKERS.get(name, lambda: DecoderPromptTuning(length=3, hidden_dim=5))
    assert added(build(backbone(family, tmp_path), {"method": maker()})) == ADDED[name]


def test_every_method_has_a_line() -> None:
    assert ADDED.keys() == MAKERS.keys() | {"decoder prompts"}


VISUAL = {
    "visual_embedding.feature_projection.bias",
    "visual_embedding.feature_norm.weight",
    "visual_embedding.box_projection.bias",
    "visual_embedding.box_norm.weight",
    "visual_embedding.image_order.weight",
}
BACKBONES: dict[type[Backbone], str] = {
    T5: r"backbone\..*(layer_norm|\.0\.layer\.0\.SelfAttention\.relative_attention_bias)\.weight",
    Bart: r"backbone\..*(_layer_norm|layernorm_embedding)\.weight|backbone\..*\.bias",
}


@pytest.mark.parametrize("family", BACKBONES)
def test_norms_biases_and_the_image_order_do_not_decay(
    family: type[Backbone], tmp_path: Path
) -> None:
    rules = optimizer_rules(build(backbone(family, tmp_path), {"full": Full()}))
    undecayed = {name for name, rule in rules.items() if not rule.decays}
    visual = {name for name in undecayed if name.startswith("visual_embedding.")}
    assert visual == VISUAL | {n for n in rules if n.endswith("_norm.bias") and "visual" in n}
    own = {name for name in rules if re.fullmatch(BACKBONES[family], name)}
    assert undecayed - visual == own
    assert len(own) > 10


def test_norms_of_a_vision_encoder_are_known_by_their_class(tmp_path: Path) -> None:
    vision = ConvNet(image_size=12, grid=3, widths=[4, 4], add_mean=True)
    model = build(backbone(T5, tmp_path), {"full": Full(part="vision")}, vision=vision)
    rules = optimizer_rules(model)
    assert {name: int(rule.decays) for name, rule in rules.items() if "vision." in name} == {
        "vision.stages.0.weight": 1, "vision.stages.1.weight": 0, "vision.stages.1.bias": 0,
        "vision.stages.3.weight": 1, "vision.stages.4.weight": 0, "vision.stages.4.bias": 0,
        "vision.mean_projection.weight": 1, "vision.mean_projection.bias": 0,
    }  # fmt: skip


class Undeclared(LinearExtension):
    """Layers of PyTorch's, a number, and a list of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer = nn.LayerNorm(3), nn.Linear(3, 3)
        self.shift = nn.Parameter(torch.zeros(1))
        self.shifts = nn.ParameterList([torch.zeros(1)])


class NormedUndeclared(Undeclared):
    """A name with Norm in it does not make a norm of a method's own module."""


class Half(Undeclared):
    """The number has a rule."""

    optimizer_rules: ClassVar[OptimizerRules] = {"shift": STACKED}


class Declared(Half):
    """All have one."""

    optimizer_rules: ClassVar[OptimizerRules] = {"shift": STACKED, "shifts.*": UNDECAYED}


@dataclass(frozen=True, kw_only=True)
class Own(Method):
    """A user's method."""

    module: type[LinearExtension]

    def attach(self, name: str, model: nn.Module, targets: TargetModules, *_: Any) -> Any:
        path = next(iter(find_linears(model, targets, "ffn_out")))
        extend_linear(model, path, name, self.module())
        return list(model.get_submodule(f"{path}.extensions.{name}").parameters())


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (
            Undeclared,
            r"Undeclared declares no optimizer rule for 'shift' \(backbone.*\); name it in",
        ),
        (NormedUndeclared, r"NormedUndeclared declares no optimizer rule for 'shift'"),
        (Half, r"ParameterList declares no optimizer rule for '0' \(backbone.*method.shifts.0\)"),
    ],
)
def test_a_method_must_declare_its_own_tensors(
    module: type[LinearExtension], said: str, tmp_path: Path
) -> None:
    model = build(backbone(T5, tmp_path), {"method": Own(module=module)})
    with pytest.raises(ValueError, match=said):
        optimizer_rules(model)


def test_layers_of_a_method_have_the_rules_of_their_kind(tmp_path: Path) -> None:
    model = build(backbone(T5, tmp_path), {"method": Own(module=Declared)})
    assert added(model) == {
        "norm.weight": 0, "norm.bias": 0, "layer.weight": 1, "layer.bias": 0, "shift": 1,
        "shifts.0": 0,
    }  # fmt: skip
