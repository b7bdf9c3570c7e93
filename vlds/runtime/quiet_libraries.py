"""Silences what libraries report by themselves; their errors still reach the user.

Called before the libraries are imported, in the command's process and for the ranks that it starts.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import MutableMapping

GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
SETTINGS = {
    # torch's C++ code warns about missing CPU features and about sockets of its rendezvous.
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    # torch's profiler says that it starts and stops.
    "KINETO_LOG_LEVEL": "6",
    # Deprecation warnings inside torch, deepspeed and jsonargparse, which users cannot fix.
    "PYTHONWARNINGS": "ignore",
    # transformers reports tied and unused weights, which vlds checks itself.
    "TRANSFORMERS_VERBOSITY": "error",
}


def quiet_libraries() -> None:
    """Silence libraries in this process, but keep what the user has set."""
    set_quiet(os.environ)
    if not has_gpu_driver():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it finds no GPU
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def set_quiet(environment: MutableMapping[str, str]) -> None:
    """Silence libraries in a process that will start with this environment."""
    for name, value in SETTINGS.items():
        environment.setdefault(name, value)


def has_gpu_driver() -> bool:
    """True if this machine may have a usable GPU; torch is not imported."""
    return any(map(os.path.exists, GPU_DRIVERS))
