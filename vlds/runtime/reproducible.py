"""The same bits on every x86-64 processor.

ATen, oneDNN and MKL choose their kernels by the processor's model, and each kernel adds in another
order. After some hundred steps this moves scores by points. The variables below leave one choice:
AVX2 for ATen and oneDNN, whose kernels then do the same on Intel's and AMD's processors, and the
only branch of MKL that does (its AVX2 branch differs between the two). Threads would cut sums, so
each rank has one.
"""

from __future__ import annotations

import os
import platform
import sys

import torch

from vlds.runtime.ranks import Ranks
from vlds.runtime.terminal import tell

VARIABLES = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "COMPATIBLE",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


def pin_arithmetic(ranks: Ranks) -> None:
    """Make all sums of this process the same on any x86-64 processor with AVX2; elsewhere, say that
    they are not. The libraries read their variables once, when they are loaded: if one is not set
    yet, the process starts again."""
    capability = torch.backends.cpu.get_cpu_capability()
    if ranks.device.type != "cpu":
        obstacle = f"this run uses a {ranks.device.type} device"
    elif platform.machine() != "x86_64":
        obstacle = f"this is a {platform.machine()} processor"
    elif any(os.environ.get(name) != value for name, value in VARIABLES.items()):
        os.environ |= VARIABLES
        sys.stdout.flush()
        sys.stderr.flush()
        # In place: the launcher watches this process, and the open files stay its own.
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    elif capability != "AVX2":
        obstacle = f"torch finds {capability} instructions, not AVX2"
    else:
        return
    if ranks.is_first:
        tell(
            f"training.reproducible: {obstacle}, so the weights will not be those of x86-64 CPUs "
            "to the bit",
            flush=True,
        )
