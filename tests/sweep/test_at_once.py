"""The share of the machine that each run has, if several run at a time."""

from __future__ import annotations

import os

import pytest

from vlds.cli.sweep import shares


def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    assert [share["OMP_NUM_THREADS"] for share in shares(3, 2, 0, {"A": "b"})] == ["2"] * 3
    assert shares(30, 1, 0, {})[0]["OMP_NUM_THREADS"] == "1"
    assert shares(2, 1, 0, {"OMP_NUM_THREADS": "5", "A": "b"})[1] == {
        "OMP_NUM_THREADS": "5", "A": "b",
    }  # fmt: skip


def test_processes_share_the_gpus() -> None:
    def visible(num: int, ranks: int, environment: dict[str, str]) -> list[str]:
        return [s["CUDA_VISIBLE_DEVICES"] for s in shares(num, ranks, 4, environment)]

    assert visible(2, 1, {}) == ["0,1", "2,3"]
    assert visible(4, 1, {"CUDA_VISIBLE_DEVICES": "7,6,5,4"}) == ["7", "6", "5", "4"]
    with pytest.raises(ValueError, match="--at-once 3: 6 GPUs are asked for, and this machine has"):
        shares(3, 2, 4, {})
