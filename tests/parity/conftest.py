"""Fixtures for cases recorded from the original code."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from transformers.models.t5.modeling_t5 import T5LayerNorm

from tests.toys.recorded.case import FOLDER, RecordedCase
from vlds.models.vl_model import VLModel

CASES = sorted(path for path in FOLDER.rglob("*.json") if not path.name.endswith(".train6.json"))
assert CASES, f"no recorded cases in {FOLDER}"


@pytest.fixture(scope="module", params=CASES, ids=lambda path: path.stem)
def case(request: pytest.FixtureRequest) -> RecordedCase:
    """Every recorded case in turn."""
    return RecordedCase(request.param)


@pytest.fixture(scope="module", autouse=True)
def exact_t5_norm() -> Iterator[None]:
    """The cases ran in float64 throughout; Hugging Face's T5 norm takes its variance in float32."""
    original = T5LayerNorm.forward

    def forward(self: T5LayerNorm, hidden_states: Tensor) -> Tensor:
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * hidden_states * torch.rsqrt(variance + self.variance_epsilon)

    T5LayerNorm.forward = forward
    yield
    T5LayerNorm.forward = original


@pytest.fixture(scope="module")
def model(case: RecordedCase, tmp_path_factory: pytest.TempPathFactory) -> VLModel:
    """Our model of the case; it must not be changed."""
    return case.build(tmp_path_factory.mktemp("case"))
