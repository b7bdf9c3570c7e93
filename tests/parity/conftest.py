"""Fixtures for cases recorded from the original code."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.toys.recorded.case import CASES, RecordedCase, exact_t5_norm
from vlds.models.kinds.joint import JointModel


@pytest.fixture(scope="module", params=CASES, ids=lambda path: path.stem)
def case(request: pytest.FixtureRequest) -> RecordedCase:
    """Every recorded case in turn."""
    return RecordedCase(request.param)


@pytest.fixture(scope="module", autouse=True)
def exact_norms() -> Iterator[None]:
    """The cases ran in float64 throughout."""
    with exact_t5_norm():
        yield


@pytest.fixture(scope="module")
def model(case: RecordedCase, tmp_path_factory: pytest.TempPathFactory) -> JointModel:
    """Our model of the case; it must not be changed."""
    return case.build(tmp_path_factory.mktemp("case"))
