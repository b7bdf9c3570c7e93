"""Every method in every layout: there and back bit for bit, or refused with the reason."""

from __future__ import annotations

import re
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.toys.method_cases import METHOD_CASES, cost_of
from tests.toys.trained_runs import CASES, assert_same, logits_of, recipe_with, trained_run
from vlds.artifact import LoadedRun, load_run
from vlds.convert.adapters import AdaptersFolders, plain
from vlds.convert.hf import write_hf
from vlds.convert.peft import PeftFolders
from vlds.convert.reference import ReferenceFile
from vlds.convert.target import RunFiles, Target, scrub
from vlds.models.methods.base import Library
from vlds.models.methods.host import added_tensors

FILES: dict[str, type[RunFiles]] = {
    "reference": ReferenceFile,
    "peft": PeftFolders,
    "adapters": AdaptersFolders,
}
OWN_HEAD = "backbone: its output head is a separate tensor, .*`vlds convert hf` keeps the head"
Pair = tuple[str, str, LoadedRun, LoadedRun]


@pytest.fixture(
    scope="module",
    params=[pytest.param(case, id="-".join(case), marks=cost_of(*case)) for case in CASES],
)
def built_pair(
    request: pytest.FixtureRequest, world: Path, tmp_path_factory: pytest.TempPathFactory
) -> Pair:
    """Backbone, method, and two runs of that recipe with other weights."""
    family, name = request.param
    recipe = recipe_with(family, name, world, tmp_path_factory.mktemp("pair"))
    return family, name, trained_run(recipe, seed=1), trained_run(recipe, seed=2)


@pytest.fixture
def pair(built_pair: Pair) -> Pair:
    """A copy that a test may change."""
    family, name, first, second = built_pair
    return family, name, copied(first), copied(second)


def copied(run: LoadedRun) -> LoadedRun:
    """The run with a model of its own."""
    return replace(run, model=deepcopy(run.model))


def expected_refusal(layout: str, pair: Pair) -> str | None:
    """Pattern of the reason why a method cannot be merged or put in a layout; None if it can."""
    family, name, _, _ = pair
    case, backbone = METHOD_CASES[name], {"FLAN": "T5"}.get(family, family)
    return case.refused.get(f"{backbone} {layout}") or case.refused.get(layout)


def refused(layout: Library, pair: Pair) -> bool:
    """True if the layout cannot express the method; then it says why."""
    family, name, run, _ = pair
    method = METHOD_CASES[name].method
    reason = expected_refusal(layout, pair)
    if reason is None and layout not in method.libraries:
        reason = re.escape(method.reasons.get(layout, f"has no {type(method).__name__}"))
    if not added_tensors(run.model, "method"):
        one_method = "layout holds one method beside the backbone, the recipe has none"
        reason = None if layout == "reference" else one_method
    reason = None if reason is None else f"methods.*{reason}"
    if (layout, family) == ("reference", "FLAN"):
        reason = OWN_HEAD
    if reason is None:
        return False
    with pytest.raises(ValueError, match=reason):
        FILES[layout](run)
    return True


@pytest.mark.sampled(3)
def test_reference_there_and_back(pair: Pair, tmp_path: Path) -> None:
    """The original's layout holds all but the vision encoder."""
    if refused("reference", pair):
        return
    _, _, first, second = pair
    ReferenceFile(first).write(tmp_path / "LAST.pth")
    scrub(second.model)
    target = Target(second, set())
    target.fill(ReferenceFile(second).read(tmp_path / "LAST.pth"), Path())
    assert_same(dict(second.model.unique_state()), dict(first.model.unique_state()))


@pytest.mark.parametrize("layout", ["peft", "adapters"])
def test_libraries_there_and_back(layout: Library, pair: Pair, tmp_path: Path) -> None:
    """Their layouts hold the method alone."""
    if refused(layout, pair):
        return
    folders_of = FILES[layout]
    first, second = plain(pair[2]), plain(pair[3])
    theirs = {name: t.clone() for name, t in second.model.unique_state()}
    (tmp_path / "files").mkdir()
    folders_of(first).write(tmp_path / "files")
    found = folders_of(second).read(tmp_path / "files")
    own = {n: t for n, t in first.model.unique_state() if "extensions.method" in n}
    assert_same(found, own)
    Target(second, set()).fill(found, Path())
    assert_same(dict(second.model.unique_state()), theirs | own)
    assert any(not torch.equal(theirs[name], tensor) for name, tensor in own.items())


@pytest.mark.sampled(27)
def test_hf_gives_the_same_outputs(pair: Pair, tmp_path: Path) -> None:
    _, _, first, second = pair
    (tmp_path / "out").mkdir()
    expected = logits_of(first.model)
    write_hf(first, tmp_path / "out")
    found = logits_of(load_run(tmp_path / "out").model)
    assert torch.equal(found, expected)
    assert not torch.equal(found, logits_of(second.model))
