"""Every dependency has a lower bound, and `make test-lowest` pins it."""

from __future__ import annotations

import tomllib

import pytest
from packaging.requirements import Requirement

from tests.lowest_versions import ROOT, UNPINNED, constraints, lower_bound, requirements


def test_every_dependency_is_pinned_to_its_lower_bound() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    lines = [*project["dependencies"], *(line for extra in extras for line in extra)]
    wanted = [found for line in lines if (found := Requirement(line)).name != "vlds"]
    assert len(wanted) > 25
    assert sorted(map(str, map(Requirement, requirements()))) == sorted(map(str, wanted))
    pins = {found.name: found for found in map(Requirement, constraints())}
    assert pins.keys() == {found.name for found in wanted} - UNPINNED
    for found in wanted:
        bounds = {spec.version for spec in found.specifier if spec.operator == ">="}
        assert len(bounds) == 1, f"{found} needs one lower bound"
        assert found.name in UNPINNED or {s.version for s in pins[found.name].specifier} == bounds


@pytest.mark.parametrize("line", ["numpy", "numpy<3", "numpy==2.3", "numpy>2", "numpy~=2.3"])
def test_a_dependency_without_lower_bound_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="is not a range like"):
        lower_bound(line)
