"""What is left of layers that lose neurons: counts, ties, merging, and the artifact of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.toys.models import TASKS, backbone, batch, build, shake
from tests.toys.rank_jobs import run_recipe
from tests.toys.rank_pool import RankPool
from tests.toys.world import world_recipe
from vlds.artifact import load_run
from vlds.convert.command import convert
from vlds.models.backbones import T5
from vlds.models.kinds.base import fit_saved, revise
from vlds.models.kinds.joint import JointModel
from vlds.models.methods import Adapter, LoRA, Shrinking
from vlds.models.methods.shrinking import importance, num_neurons, survivors

STEPS = 12
METHODS = {
    "adapter": Shrinking(of=Adapter(reduction=4), cycles=3),
    "lora": Shrinking(of=LoRA(rank=4, alpha=4.0, dropout=0.0), cycles=3),
}


def state_of(model: JointModel) -> dict[str, Mapping[str, Tensor]]:
    """The state of a run, whose moments are other numbers than its weights."""
    keys = {"fp32": 1.0, "exp_avg": 0.5, "exp_avg_sq": 0.25}
    return {
        name: {key: factor * parameter.detach().clone() for key, factor in keys.items()}
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def put(model: JointModel, state: Mapping[str, Mapping[str, Tensor] | None]) -> None:
    """Write masters into a model."""
    with torch.no_grad():
        for name, tensors in state.items():
            assert tensors is not None
            model.get_parameter(name).copy_(tensors["fp32"])


def modules_of(model: JointModel) -> list[nn.Module]:
    """The modules that shrink."""
    return [module for module in model.modules() if hasattr(module, "neurons")]


@pytest.mark.parametrize("name", METHODS)
def test_cycles_leave_exact_numbers_and_merge_to_the_same(name: str, tmp_path: Path) -> None:
    model = build(backbone(T5, tmp_path), {"method": METHODS[name]}).eval()
    shake(model)
    total = sum(map(num_neurons, modules_of(model)))
    for cycle, step in enumerate((3, 6, 9), 1):
        put(model, revise(model, step, STEPS, state_of(model)))
        assert sum(map(num_neurons, modules_of(model))) == int(total * 0.5**cycle)
    assert len(set(map(num_neurons, modules_of(model)))) > 1
    expected = model.logits(batch())
    other = build(backbone(T5, tmp_path), {"method": METHODS[name]}).eval()
    fit_saved(other, {n: tensor.shape for n, tensor in model.state_dict().items()})
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.logits(batch()), expected)
    merged = METHODS[name].merge("method", other.backbone, TASKS)
    assert torch.allclose(other.logits(batch()), expected, atol=1e-5)
    if name == "adapter":
        assert isinstance(merged["method"], Adapter)
        again = build(backbone(T5, tmp_path), dict(merged)).eval()
        again.load_state_dict(other.state_dict())
        assert torch.allclose(again.logits(batch()), expected, atol=1e-5)
    else:
        assert merged == {}
        assert not modules_of(other)


def test_planted_neurons_go_first_and_equal_ones_stay_in_order(tmp_path: Path) -> None:
    model = build(backbone(T5, tmp_path), {"method": METHODS["adapter"]})
    state = state_of(model)
    planted = next(name for name in state if name.endswith("down_weight"))
    for leaf, dim in (("down_weight", 1), ("up_weight", 2)):
        name = planted.replace("down_weight", leaf)
        state[name]["fp32"].select(dim, 2).fill_(1e-9)
    kept = revise(model, 3, STEPS, state)[planted]
    assert kept is not None
    rows = [row for row in state[planted]["fp32"][0] if any(map(row.equal, kept["fp32"][0]))]
    assert not any(row.eq(1e-9).all() for row in rows)
    assert survivors([[1.0, 2.0], [2.0, 2.0], []], 2) == [[1], [0], []]


def test_importance_does_not_depend_on_the_order_of_sums() -> None:
    rows = torch.randn(1, 400, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.arange(
        -9, 11, 20 / 400
    )
    one, other = (importance([matrix], relative=False) for matrix in (rows, rows.flip(1)))
    assert one == other
    assert importance([torch.tensor([[1.0, 3.0], [4.0, 4.0]])], relative=True) == [0.5, 1.0]


def test_nothing_left_is_an_error_before_training(tmp_path: Path) -> None:
    method = Shrinking(of=Adapter(reduction=16), cycles=9)
    with pytest.raises(ValueError, match=r"methods\.method: cycles: 9 cycles .* give fewer"):
        build(backbone(T5, tmp_path), {"method": method})
    with pytest.raises(ValueError, match="cycles: got 9, but the run has 9 steps"):
        method.check_steps(9)


@pytest.mark.slow
def test_an_artifact_of_unlike_widths_answers_and_merges(
    world: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    recipe = replace(
        world_recipe(world, tmp_path / "run"),
        methods={"adapter": Shrinking(of=Adapter(reduction=4), cycles=2, removed=0.7)},
    )
    assert ranks2.run(run_recipe, recipe, False, timeout=120) == [0, 0]
    loaded = load_run(tmp_path / "run")
    assert isinstance(loaded.model, JointModel)
    widths = list(map(num_neurons, modules_of(loaded.model)))
    assert sum(widths) == int(len(widths) * (loaded.model.backbone.config.d_model // 4) * 0.09)
    assert 0 in widths
    merged = tmp_path / "merged"
    assert convert(["merge", "--run", str(tmp_path / "run"), "--out", str(merged)]) == 0
    again = load_run(merged)
    assert isinstance(again.recipe.methods["adapter"], Adapter)
    pictures = torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8)
    rows = replace(batch((0, 1, 0, 1)), features=None, images=pictures)
    assert torch.allclose(again.model.logits(rows), loaded.model.logits(rows), atol=1e-4)
