"""Processes that start at once: a process that has imported everything forks them.

A cold process imports for seconds. The fork is sound: the process that forks has one thread and
has run no tensor operation.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection, Pipe
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from typing import Any, NoReturn

from tests.toys.files import ROOT
from vlds.runtime.process import PR_SET_PDEATHSIG
from vlds.runtime.rank_environment import free_port
from vlds.runtime.terminal import hide_mlflow


@dataclass(frozen=True)
class Child:
    """A process with its own session."""

    pid: int

    def exit_code(self, seconds: float = 0.0) -> int | None:
        """Its exit code, -n by signal n; None where it has not ended after so long."""
        deadline = time.monotonic() + seconds
        while True:
            code: int | None = _server().ask("exit_code", self.pid)
            if code is not None or time.monotonic() > deadline:
                return code
            time.sleep(0.005)

    def kill(self) -> None:
        """End it and what it has started."""
        if self.exit_code() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.exit_code(60)


def start(
    function: Callable[..., object],
    *args: object,
    log: Path,
    environment: Mapping[str, str],
    handle: int | None = None,
) -> Child:
    """Call a top-level function in a new process, which ends with 0 if the function returns.

    `log` gets its stdout and stderr. It gets `environment` besides ours, and, where `handle` names
    a file descriptor, a copy of that as its first argument.
    """
    variables = {**os.environ, **environment}
    return Child(_server().ask("start", function, args, log, variables, handle=handle))


def rank_environment(global_rank: int = 0, world_size: int = 1, port: int = 0) -> dict[str, str]:
    """What the deepspeed launcher would set, and what keeps the processes small and quiet."""
    return {
        "RANK": str(global_rank),
        "LOCAL_RANK": str(global_rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),  # also where this process has been a rank itself
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port or free_port()),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }


class _Server:
    """The process that forks, as its one client sees it. It ends with the client."""

    def __init__(self) -> None:
        self._connection, theirs = Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.toys.forks", str(theirs.fileno())],
            cwd=ROOT,
            env=os.environ | rank_environment(),
            pass_fds=[theirs.fileno()],
        )
        theirs.close()

    def ask(self, *request: object, handle: int | None = None) -> Any:
        self._connection.send((*request, handle is not None))
        if handle is not None:
            send_handle(self._connection, handle, self._process.pid)
        return self._connection.recv()


_server = cache(_Server)


def _serve(connection: Connection) -> None:
    codes: dict[int, int] = {}
    while True:
        try:
            word, *request, has_handle = connection.recv()
        except EOFError:
            return
        if word == "exit_code":
            (pid,) = request
            ended, status = (0, 0) if pid in codes else os.waitpid(pid, os.WNOHANG)
            if ended:
                codes[pid] = os.waitstatus_to_exitcode(status)
            connection.send(codes.get(pid))
            continue
        handle = recv_handle(connection) if has_handle else None
        pid = os.fork()
        if not pid:
            connection.close()
            _run(*request, handle)
        if handle is not None:
            os.close(handle)
        codes.pop(pid, None)  # of an earlier child with the same number
        connection.send(pid)


def _run(
    function: Callable[..., object],
    args: tuple[object, ...],
    log: Path,
    environment: dict[str, str],
    handle: int | None,
) -> NoReturn:
    """What a child does. Its destructors are left out: that of a process group aborts at times."""
    code = 1
    try:
        os.setsid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(written, 1)
        os.dup2(written, 2)
        os.environ.clear()
        os.environ.update(environment)
        faulthandler.enable()
        faulthandler.register(signal.SIGUSR1)
        function(*(() if handle is None else (handle,)), *args)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _main() -> None:
    """The process that forks."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    hide_mlflow()  # as each command does
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401 (what `deepspeed.initialize` imports)

    import data_prep.cli  # noqa: F401
    import vlds.cli.main
    import vlds.cli.rank
    import vlds.convert.hf
    import vlds.report.page
    import vlds.runtime.terminal
    import vlds.training.loop
    from vlds.models.kernels.dropout import SOURCE
    from vlds.models.kernels.fused import compiled_functions

    compiled_functions(SOURCE)
    vlds.runtime.terminal.OTHERS_SPEAK_AFTER_S = 0.5  # no launcher is to be waited for
    # What imports leave is for ever: a child's collections need not go through it.
    gc.collect()
    gc.freeze()
    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads must not fork"
    _serve(Connection(int(sys.argv[1])))


if __name__ == "__main__":
    _main()
