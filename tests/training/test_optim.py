"""The schedule and what decays."""

from __future__ import annotations

import pytest

from vlds.config import OptimizerConfig
from vlds.training.optim import is_undecayed, schedule_factor


def test_first_step_has_rate_zero_and_the_last_nearly() -> None:
    config = OptimizerConfig(warmup_ratio=0.1)
    factors = [schedule_factor(step, 40, config) for step in range(40)]
    assert factors[:5] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert factors[-1] == pytest.approx(1 / 36)
    assert factors[22] == pytest.approx(0.5)


def test_rate_stays_flat_until_the_decay_starts() -> None:
    config = OptimizerConfig(warmup_ratio=0.1, decay_start=0.5)
    factors = [schedule_factor(step, 100, config) for step in range(100)]
    assert factors[10] == factors[49] == 1.0
    assert factors[75] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("name", "undecayed"),
    [
        ("backbone.encoder.block.0.layer.0.layer_norm.weight", True),
        ("visual_embedding.image_order.weight", True),
        ("backbone.model.encoder.layers.0.fc2.adapter.down_bias", True),
        ("backbone.model.encoder.layers.0.fc2.adapter.down_weight", False),
        ("visual_embedding.feature_projection.weight", False),
    ],
)  # fmt: skip
def test_biases_norms_and_order_tables_do_not_decay(name: str, undecayed: bool) -> None:
    assert is_undecayed(name) is undecayed
