"""Commands that start at once, with limits on their time, memory and the size of their files."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

import data_prep.cli
import vlds.cli.rank
from tests.toys.faults.disk_faults import FaultyDisk
from tests.toys.forks import rank_environment, start
from vlds.cli.main import run_command

SECONDS = 30.0
"""Time limit of a command on small inputs, ten times what it takes on a busy machine."""
MEMORY = 3 << 30
"""Limit in bytes of the memory that a command may use beyond its imports."""
FILE_BYTES = 256 << 20
"""Limit in bytes of each file that it writes."""
TIMED_OUT = -1000
"""Stands for an exit code."""


class Ending(NamedTuple):
    """What became of a command."""

    code: int
    """Exit code; 128 + n after signal n."""
    output: str
    """Its stdout and stderr."""


def run_forked(program: str, words: Sequence[str], folder: Path, failing: int = 0) -> Ending:
    """Run a command of `vlds` or `data_prep` in a folder; its output goes to FOLDER.log.

    The `failing`th write, flush or rename in the folder fails (0: none). FOLDER.calls has one byte
    for each of them.
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
    """Number of writes, flushes and renames of the last command in a folder."""
    return folder.with_name(f"{folder.name}.calls").stat().st_size


def _command(program: str, words: list[str], folder: Path, failing: int) -> None:
    os.chdir(folder)
    calls = os.open(folder.with_name(f"{folder.name}.calls"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    disk = FaultyDisk(Path(os.path.realpath(folder)), failing, errno.EIO, counter=calls)
    used = psutil.Process().memory_info().data
    resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, resource.RLIM_INFINITY))
    with disk.installed():
        if program == "vlds":
            vlds.cli.rank.run_rank(words, run_command)
        raise SystemExit(data_prep.cli.main(words))
