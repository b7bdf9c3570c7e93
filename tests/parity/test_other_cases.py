"""The tests of this folder run on cases that others have recorded, with other options."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.toys.files import ROOT
from tests.toys.recorded.variants import (
    biases_alone,
    dropped_layers,
    fewer_costs,
    other_schedules,
    rounded_numbers,
)

TESTS = [
    f"tests/parity/test_{name}.py"
    for name in ("forward", "training", "related", "simnl", "pretraining_items", "meter")
]


@pytest.mark.slow
def test_other_options_and_other_last_bits(tmp_path: Path) -> None:
    pytest.importorskip("ot", reason="needs the extra `transport`")
    for write in (biases_alone, dropped_layers, fewer_costs, rounded_numbers, other_schedules):
        write(tmp_path)
    words = ["-q", "-rA", "-p", "no:cacheprovider", "-k", "not train6-3", *TESTS]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        env=os.environ | {"VLDS_GOLDENS": str(tmp_path)}, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    for name in (
        "test_forward.py::test_gradients[bart_biases]",
        "test_forward.py::test_gradients[t5_lst_dropped]",
        "test_training.py::test_the_engine_follows_as_closely_as_float32_allows"
        "[bart_multiple_adapters.train6-2]",
        "test_related.py::test_plans_and_merged_adapters[own_mera_merge_3-weights_in]",
        "test_simnl.py::test_steps[simnl_c5_k4_2epochs]",
        "test_pretraining_items.py::test_expansions[pretrain_strings]",
        "test_meter.py::test_schedule[case0]",
    ):
        assert f"PASSED tests/parity/{name}" in done.stdout
