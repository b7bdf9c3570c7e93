"""Each method, on each kind of model, has the properties that `vlds prove` shows: what it trains
gets gradients, those of a plain loop, and neither losses nor answers depend on other rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.toys.kinds import ALL_KINDS, kind_recipe
from tests.toys.method_cases import METHOD_CASES
from vlds.models import JointSeq2Seq
from vlds.prove.bench import Bench
from vlds.prove.properties import PROPERTIES

TRIED = ("batch-free", "gradient-parity", "what-trains", "answers")
"""Those that depend on the method."""


@pytest.mark.sampled(14)
@pytest.mark.parametrize("name", METHOD_CASES)
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_method_has_the_properties_or_is_refused(
    kind: str, name: str, world: Path, tmp_path: Path
) -> None:
    recipe = kind_recipe(kind, world, tmp_path / "run")
    tasks = {n: replace(t, max_prompt_tokens=40, evaluate=[]) for n, t in recipe.tasks.items()}
    model = recipe.model
    if isinstance(model, JointSeq2Seq):
        model = replace(model, train_norms=False)  # no ladder stands beside what trains
    methods = {"method": METHOD_CASES[name].method}
    recipe = replace(recipe, model=model, tasks=tasks)
    try:
        bench = Bench(replace(recipe, methods=methods), scratch=tmp_path, rows=8)
        trained = bench.model.trained_by
    except ValueError as refusal:
        if not str(refusal).startswith("methods.method"):
            raise
        return
    assert "method" in trained.values()
    for each in PROPERTIES:
        if each.name in TRIED:
            finding = each.check(bench)
            assert finding.verdict != "fails", (each.name, finding)
            # Terms of a method's own have no plain counterpart.
            assert not finding.left_out or bench.model.batch_losses
