"""training.reproducible: the weights of a run do not depend on the processor."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tests.toys.files import ROOT
from tests.toys.world import world_recipe
from vlds.config import save_recipe
from vlds.runtime.rank_environment import single_rank
from vlds.runtime.reproducible import VARIABLES

OTHER_KERNELS = {
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_CBWR": "AVX",
}
"""What torch would compute with on an old processor."""
QEMU = shutil.which("qemu-x86_64")


def trained(
    world: Path,
    run: Path,
    environment: Mapping[str, str],
    emulator: tuple[str, ...] = (),
    *,
    reproducible: bool = True,
) -> bytes:
    """The weights of a short run in a process of its own."""
    recipe = world_recipe(world, run)
    training = replace(recipe.training, steps=3, precision="fp32", reproducible=reproducible)
    save_recipe(replace(recipe, training=training), run.with_suffix(".yaml"))
    result = subprocess.run(
        [*emulator, sys.executable, "-m", "vlds", "train", str(run.with_suffix(".yaml"))],
        env=os.environ | single_rank() | {"DS_ACCELERATOR": "cpu"} | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return (run / "artifact" / "weights.safetensors").read_bytes()


def test_other_kernels_give_the_same_bits(world: Path, tmp_path: Path) -> None:
    expected = trained(world, tmp_path / "here", {})
    assert trained(world, tmp_path / "old", OTHER_KERNELS) == expected
    plain = trained(world, tmp_path / "plain", OTHER_KERNELS, reproducible=False)
    assert plain != expected


@pytest.mark.slow
@pytest.mark.skipif(QEMU is None, reason="qemu-x86_64 (Debian's qemu-user) is not installed")
@pytest.mark.parametrize("processor", ["Haswell-v4", "EPYC-Rome-v4"])
def test_other_processors_give_the_same_bits(processor: str, world: Path, tmp_path: Path) -> None:
    assert QEMU is not None
    # A process that starts again leaves the emulator, and what cc compiles is for this processor.
    environment = {**VARIABLES, "CC": "false"}
    emulated = trained(world, tmp_path / "run", environment, (QEMU, "-cpu", processor))
    assert emulated == trained(world, tmp_path / "here", VARIABLES)
