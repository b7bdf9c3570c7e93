"""The share of the machine that each run has, if several run at a time."""

from __future__ import annotations

import pytest

from vlds.cli.sweep import shares


def test_processes_share_the_gpus() -> None:
    def visible(num: int, ranks: int, environment: dict[str, str]) -> list[str]:
        return [s["CUDA_VISIBLE_DEVICES"] for s in shares(num, ranks, 4, environment)]

    assert visible(2, 1, {}) == ["0,1", "2,3"]
    assert visible(4, 1, {"CUDA_VISIBLE_DEVICES": "7,6,5,4"}) == ["7", "6", "5", "4"]
    with pytest.raises(ValueError, match="--at-once 3: 6 GPUs are asked for, and this machine has"):
        shares(3, 2, 4, {})
