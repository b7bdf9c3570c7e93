"""Memory of freed tensors stays with the process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from vlds.runtime.process import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(5_000_000)  # 20 MB, 4,883 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
faults()
print(faults())
"""
PAGES = 4_883


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
@pytest.mark.parametrize(
    ("variables", "is_kept"), [({}, True), ({"MALLOC_MMAP_THRESHOLD_": "1000000"}, False)]
)
def test_pages_of_freed_tensors_are_used_again(variables: dict[str, str], is_kept: bool) -> None:
    """Ten tensors of 20 MB, one after the other, after the first ones; what a user sets stays."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=os.environ | variables,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    faults = int(done.stdout)
    assert faults < PAGES if is_kept else faults > PAGES
