"""A CPU that emulates the recipe's precision is named before the long work."""

from __future__ import annotations

import pytest
import torch

from vlds.training import prepare

CPU = torch.device("cpu")


def test_emulated_precision_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "slowdown", lambda dtype: 39.6)
    told = prepare.check_precision("bf16", CPU)
    assert told is not None
    assert "bf16 products take 40 times as long" in told
    assert "--training.precision fp32" in told


def test_a_cpu_with_instructions_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "slowdown", lambda dtype: 0.6)
    assert prepare.check_precision("bf16", CPU) is None


def test_a_gpu_that_emulates_bf16_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "emulates_bf16", lambda device: True)
    monkeypatch.setattr(prepare, "device_name", lambda device: "Tesla T4")
    told = prepare.check_precision("bf16", torch.device("cuda"))
    assert told is not None
    assert told.startswith("training.precision: Tesla T4 has no instructions for bf16")
    assert "--training.precision fp16" in told


def test_fp32_and_gpus_are_never_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "slowdown", lambda dtype: pytest.fail("measured"))
    assert prepare.check_precision("fp32", CPU) is None
    monkeypatch.setattr(prepare, "emulates_bf16", lambda device: False)
    assert prepare.check_precision("bf16", torch.device("cuda")) is None


def test_a_precision_is_as_fast_as_itself() -> None:
    assert 0.1 < prepare.slowdown(torch.float32) < 10
