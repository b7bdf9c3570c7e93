"""Commands that start in no time and cannot run away: each has limits on time, memory and the size
of files."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

import data_prep.cli
import vlds.launch.rank
from tests.toys.faults.disk_faults import FaultyDisk
from tests.toys.forks import rank_environment, start
from vlds.cli.main import run_here

SECONDS = 30.0
"""Most that a command on small inputs may take; a busy machine takes a tenth of it."""
MEMORY = 3 << 30
"""Most bytes of memory of its own that it may take beyond what the imports have."""
FILE_BYTES = 256 << 20
"""Most bytes of a file that it writes."""
TIMED_OUT = -1000
"""In the place of an exit code."""


class Ending(NamedTuple):
    """What became of a command."""

    code: int
    """Exit code; 128 + n by signal n."""
    said: str
    """Its stdout and stderr."""


def run_forked(program: str, words: Sequence[str], folder: Path, failing: int = 0) -> Ending:
    """Run a command of `vlds` or `data_prep` in a folder; its output goes to a file beside.

    The call number `failing` that writes, flushes or renames in the folder fails; 0: none. A second
    file beside has a byte for each.
    """
    log = folder.with_name(f"{folder.name}.log")
    environment = rank_environment() | {"HF_HUB_OFFLINE": "1"}
    child = start(_command, program, list(words), folder, failing, log=log, environment=environment)
    code = child.exit_code(SECONDS)
    if code is None:
        code = TIMED_OUT
    elif code < 0:
        code = 128 - code
    child.kill()
    return Ending(code, log.read_text("utf-8", errors="replace"))


def num_calls(folder: Path) -> int:
    """Calls that the last command in a folder made, up to the end or beyond the one that failed."""
    return folder.with_name(f"{folder.name}.calls").stat().st_size


def _command(program: str, words: list[str], folder: Path, failing: int) -> None:
    os.chdir(folder)
    calls = os.open(folder.with_name(f"{folder.name}.calls"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    place = Path(os.path.realpath(folder))
    disk = FaultyDisk(place, failing, errno.EIO, counter=calls)
    taken = psutil.Process().memory_info().data
    resource.setrlimit(resource.RLIMIT_DATA, (taken + MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, resource.RLIM_INFINITY))
    with disk.installed():
        if program == "vlds":
            vlds.launch.rank.run_rank(words, run_here)
        raise SystemExit(data_prep.cli.main(words))
