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
from vlds.recipe.config import save_recipe
from vlds.runtime.rank_environment import SAME_BITS, local_rank

OTHER_KERNELS = {
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_CBWR": "AVX",
}
"""What torch would compute with on an old processor."""
QEMU = shutil.which("qemu-x86_64")


def plain_environment() -> dict[str, str]:
    """This process's, without the variables of a reproducible run."""
    return {name: value for name, value in os.environ.items() if name not in SAME_BITS}


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
        env=os.environ | local_rank(0, 1, 0) | {"DS_ACCELERATOR": "cpu"} | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return (run / "artifact" / "weights.safetensors").read_bytes()


@pytest.mark.slow
def test_other_kernels_give_the_same_bits(world: Path, tmp_path: Path) -> None:
    expected = trained(world, tmp_path / "here", {})
    assert trained(world, tmp_path / "old", OTHER_KERNELS) == expected
    plain = trained(world, tmp_path / "plain", OTHER_KERNELS, reproducible=False)
    assert plain != expected


PRODUCTS = """
import torch
from vlds.runtime.reproducible import multiply_by_onednn

def results():
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        a, b, c, one = (
            torch.randn(*shape, generator=generator).to(dtype)
            for shape in ((3, 4), (4, 5), (3, 5), (1,))
        )
        yield a @ b
        yield torch.addmm(c / 0, a, b, beta=0)
        yield torch.addmm(one, a, b)
        yield torch.addmm(c[:, :1], a, b, beta=0.5, alpha=2)
        yield torch.addmm(c, a[:, :0], b[:0])
        yield torch.mm(a, b, out=torch.empty_like(c))
        for wrong in (lambda: a @ b[:2], lambda: torch.addmm(c.to(torch.complex64), a, b)):
            try:
                wrong()
            except RuntimeError:
                yield torch.zeros(())

before = list(results())
multiply_by_onednn()
for mine, theirs in zip(results(), before, strict=True):
    torch.testing.assert_close(mine, theirs, rtol=0.02, atol=1e-5)
"""


@pytest.mark.slow
def test_products_keep_torchs_rules() -> None:
    command = [sys.executable, "-c", PRODUCTS]
    result = subprocess.run(command, env=plain_environment(), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@pytest.mark.skipif(QEMU is None, reason="qemu-x86_64 (Debian's qemu-user) is not installed")
@pytest.mark.parametrize("processor", ["Haswell-v4", "EPYC-Rome-v4"])
def test_other_processors_give_the_same_bits(processor: str, world: Path, tmp_path: Path) -> None:
    assert QEMU is not None
    # A process that starts again leaves the emulator, and what cc compiles is for this processor.
    environment = {**SAME_BITS, "CC": "false"}
    emulated = trained(world, tmp_path / "run", environment, (QEMU, "-cpu", processor))
    assert emulated == trained(world, tmp_path / "here", SAME_BITS)
