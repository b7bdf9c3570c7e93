"""DeepSpeed's imports, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.toys.files import ROOT

PROGRAM = """
import sys
from deepspeed.runtime import compiler
from vlds.runtime.deepspeed_start import import_muon
own = compiler.compile
import_muon()
from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam
print(compiler.compile is own, "torch._inductor.compile_fx" in sys.modules)
"""


@pytest.mark.slow
def test_the_compiler_is_not_imported() -> None:
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "True False"
