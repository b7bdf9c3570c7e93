"""Commands that start in no time and cannot run away: a process that has imported everything forks
one child a command, with limits on time, memory and the size of files.

As in `tests.faults.warm`, the fork is sound because the process has one thread and has run no
tensor operation.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import NamedTuple, NoReturn

import psutil

from tests.faults.warm import PR_SET_PDEATHSIG, QUIET
from tests.rank_pool import ROOT, free_port, rank_environment

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


class Forked:
    """The forking process."""

    def __init__(self) -> None:
        self._pipe, theirs = Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.forked", str(theirs.fileno())],
            cwd=ROOT,
            env=os.environ | rank_environment(0, 1, 0) | QUIET | {"HF_HUB_OFFLINE": "1"},
            pass_fds=[theirs.fileno()],
        )
        theirs.close()

    def run(self, program: str, words: Sequence[str], folder: Path) -> Ending:
        """Run a command of `vlds` or `data_prep` in a folder; its output goes to a file beside."""
        log = folder.with_name(f"{folder.name}.log")
        self._pipe.send((program, list(words), folder, log, free_port()))
        code: int = self._pipe.recv()
        return Ending(code, log.read_text("utf-8", errors="replace"))

    def close(self) -> None:
        """End the forking process; its child dies with it."""
        self._process.kill()
        self._process.wait()


def _serve(pipe: Connection) -> None:
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401 (what `deepspeed.initialize` imports)

    import data_prep.cli  # noqa: F401
    import vlds.cli
    import vlds.convert.hf
    import vlds.launch
    import vlds.report
    import vlds.training.loop

    vlds.launch.OTHERS_SPEAK_AFTER_S = 0.5  # no launcher is to be waited for
    gc.collect()
    gc.freeze()
    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads must not fork"
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        pid = os.fork()
        if pid == 0:
            _child(*job)
        pipe.send(_reap(pid))


def _reap(pid: int) -> int:
    """Wait for a child and end what it has left of its session; its exit code."""
    deadline = time.monotonic() + SECONDS
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        if time.monotonic() > deadline:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return TIMED_OUT
        time.sleep(0.005)


def _child(program: str, words: list[str], folder: Path, log: Path, port: int) -> NoReturn:
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(folder)
    taken = psutil.Process().memory_info().data
    resource.setrlimit(resource.RLIMIT_DATA, (taken + MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, resource.RLIM_INFINITY))
    os.environ |= rank_environment(0, 1, port)
    if program == "vlds":
        from vlds.launch import run_rank

        run_rank(words)
    code = 1
    try:
        from data_prep.cli import main

        code = main(words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    _serve(Connection(int(sys.argv[1])))
    os._exit(0)
