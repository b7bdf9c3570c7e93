"""What libraries say on their own does not reach the user; their errors do.

Called before they are imported, in the command's own process and for the ranks that it starts.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import MutableMapping

GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
SETTINGS = {
    # torch's C++ part warns of missing CPU features and of its rendezvous's sockets.
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    # Deprecations inside torch, deepspeed and jsonargparse, which only their callers can cure.
    "PYTHONWARNINGS": "ignore",
    # transformers reports tied and unused weights, which vlds checks by itself.
    "TRANSFORMERS_VERBOSITY": "error",
}


def quiet_libraries() -> None:
    """Set this process up; what the user has set stays."""
    set_quiet(os.environ)
    if not has_gpu_driver():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it finds no GPU
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def set_quiet(environment: MutableMapping[str, str]) -> None:
    """Set up a process that will start with this environment."""
    for name, value in SETTINGS.items():
        environment.setdefault(name, value)


def has_gpu_driver() -> bool:
    """Whether this machine could have a usable GPU, without importing torch."""
    return any(map(os.path.exists, GPU_DRIVERS))
