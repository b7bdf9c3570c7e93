"""Compiles C for this machine's processor, where it has a C compiler."""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
from functools import cache
from pathlib import Path

from vlds.runtime.scratch import scratch_folder

FLAGS = ("-std=c11", "-O3", "-march=native", "-shared", "-fPIC")
LONGEST_S = 60.0


@cache
def compiled_functions(source: Path) -> ctypes.CDLL | None:
    """The functions of a C file, compiled for this process in a quarter of a second; None if that
    is impossible here. $CC names another compiler than cc."""
    try:
        with scratch_folder() as folder:
            library = folder / "functions.so"
            command = [*shlex.split(os.environ.get("CC") or "cc"), *FLAGS, str(source)]
            subprocess.run(
                [*command, "-o", str(library)], check=True, capture_output=True, timeout=LONGEST_S
            )
            return ctypes.CDLL(str(library))
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
