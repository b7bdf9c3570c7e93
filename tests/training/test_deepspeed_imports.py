"""DeepSpeed's imports, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

from tests.toys.files import ROOT

PROGRAM = """
import sys
from deepspeed.runtime import compiler
from vlds.training.deepspeed_imports import import_muon
own = compiler.compile
import_muon()
from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam
assert compiler.compile is own
assert "torch._inductor.compile_fx" not in sys.modules
"""


def test_the_compiler_is_not_imported() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, check=True)
