"""Which weights of each method decay, and which belong to a single task."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

from tests.toys.method_cases import FAMILY_CASES, METHOD_CASES
from tests.toys.models import backbone, build
from vlds.models.backbones import T5, Backbone, Bart
from vlds.models.kinds.joint import JointModel
from vlds.models.methods import Full, Method
from vlds.models.methods.host import Host, LinearExtension
from vlds.models.roles import optimizer_rules
from vlds.models.vision import ConvNet
from vlds.schema import STACKED, UNDECAYED, OptimizerRules

PLACE = re.compile(r".*extensions\.method\.(stacks\.\w+\.)?(generators\.\w+\.)?")
"""The path before a tensor's name inside the method's module."""


def added(model: JointModel) -> dict[str, int]:
    """Name of a tensor inside the method's module -> 1 if it decays, else 0."""
    return {
        PLACE.sub("", name): int(rule.decays)
        for name, rule in optimizer_rules(model).items()
        if PLACE.match(name)
    }


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("family", "name"), FAMILY_CASES)
def test_what_decays_of_each_method(name: str, family: str, tmp_path: Path) -> None:
    case = METHOD_CASES[name]
    source = backbone({"T5": T5, "Bart": Bart}[family], tmp_path)
    found = added(build(source, {"method": case.method}))
    if (family, name) == ("Bart", "BitFit new"):  # BART has biases in all its layers
        assert found == {}
    elif case.decayed is not None:
        expected = dict.fromkeys(case.decayed.split(), 1)
        assert found == expected | dict.fromkeys(case.undecayed.split(), 0)


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
    """PyTorch layers, a scalar parameter, and a list of scalars."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer = nn.LayerNorm(3), nn.Linear(3, 3)
        self.shift = nn.Parameter(torch.zeros(1))
        self.shifts = nn.ParameterList([torch.zeros(1)])


class NormedUndeclared(Undeclared):
    """A class name with "Norm" does not make a method's module a norm."""


class Half(Undeclared):
    """The scalar has a rule."""

    optimizer_rules: ClassVar[OptimizerRules] = {"shift": STACKED}


class Declared(Half):
    """All of them have a rule."""

    optimizer_rules: ClassVar[OptimizerRules] = {"shift": STACKED, "shifts.*": UNDECAYED}


@dataclass(frozen=True, kw_only=True)
class Own(Method):
    """A user's method."""

    module: type[LinearExtension]

    def attach(self, host: Host) -> list[nn.Parameter]:
        path, linear = next(iter(host.linears("ffn_out").items()))
        host.extend_linear(linear, self.module())
        return list(host.model.get_submodule(f"{path}.extensions.{host.name}").parameters())


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
