"""A pool of gloo processes for the tests of distributed code; also the program each of them runs.

Starting a process that imports torch costs seconds, so the processes are started once and then
execute one job after another: a top-level function of a test module, called on every process with
the same arguments. The process group is initialised before the first job, so a job may use
`torch.distributed` at once and reads its global_rank from there.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import importlib.util
import inspect
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
GRACE_S = 2.0
"""How long the others may take to answer once one has failed: they may wait for it for ever."""


class RankError(AssertionError):
    """A job failed, died or hung on at least one process; the message holds every traceback."""


class RankPool:
    """`world_size` processes, started at the first job and again after a job that killed them."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._processes: list[subprocess.Popen[bytes]] = []
        self._connections: list[Connection] = []
        self._folder = Path()

    def run(self, function: Callable[..., Any], *args: Any, timeout: float = 60) -> list[Any]:
        """Call function(*args) on every process; the results in the order of global_rank."""
        if "." in function.__qualname__:
            raise TypeError(f"{function.__qualname__} must be a function at the top of a file")
        self._start()
        file = str(Path(inspect.getfile(function)).resolve())
        header = pickle.dumps((function.__module__, file, function.__name__))
        body = pickle.dumps(args)
        for connection in self._connections:
            with contextlib.suppress(BrokenPipeError):
                connection.send_bytes(header)
                connection.send_bytes(body)
        answers = self._collect(timeout)
        failures = [f"global_rank {n}: {a[1]}" for n, a in sorted(answers.items()) if not a[0]]
        missing = sorted(set(range(self.world_size)) - set(answers))
        if missing:
            failures += self._stacks_of(missing, "no answer within the time limit")
            self.close()
        if failures:
            raise RankError("\n".join([f"{function.__name__} failed", *failures]))
        return [answers[n][1] for n in range(self.world_size)]

    def close(self) -> None:
        """Kill all processes of the pool and what they started."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for connection in self._connections:
            connection.close()
        self._processes, self._connections = [], []

    def _start(self) -> None:
        if self._processes and all(process.poll() is None for process in self._processes):
            return
        self.close()
        self._folder = Path(tempfile.mkdtemp(prefix="vlds-ranks-"))
        port = free_port()
        for number in range(self.world_size):
            ours, theirs = socket.socketpair()
            with open(self._log(number), "wb") as log:
                process = subprocess.Popen(
                    [sys.executable, __file__, str(theirs.fileno()), str(self._folder / "store")],
                    env=os.environ | rank_environment(number, self.world_size, port),
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            theirs.close()
            self._processes.append(process)
            self._connections.append(Connection(ours.detach()))

    def _collect(self, timeout: float) -> dict[int, tuple[bool, Any]]:
        """global_rank -> (succeeded, result or reason) of those that answered in time."""
        answers: dict[int, tuple[bool, Any]] = {}
        deadline = time.monotonic() + timeout
        while len(answers) < self.world_size:
            open_ones = {c: n for n, c in enumerate(self._connections) if n not in answers}
            ready = wait(list(open_ones), max(0.0, deadline - time.monotonic()))
            if not ready:
                break
            for connection in ready:
                assert isinstance(connection, Connection)
                number = open_ones[connection]
                try:
                    answers[number] = pickle.loads(connection.recv_bytes())
                except (EOFError, ConnectionError):
                    code = self._processes[number].wait()
                    answers[number] = (False, f"died with code {code}\n{self._tail(number)}")
                if not answers[number][0]:
                    deadline = min(deadline, time.monotonic() + GRACE_S)
        return answers

    def _stacks_of(self, numbers: list[int], reason: str) -> list[str]:
        for number in numbers:
            with contextlib.suppress(ProcessLookupError):
                self._processes[number].send_signal(signal.SIGUSR1)
        time.sleep(0.5)
        return [f"global_rank {number}: {reason}\n{self._tail(number)}" for number in numbers]

    def _log(self, number: int) -> Path:
        return self._folder / f"{number}.log"

    def _tail(self, number: int) -> str:
        return self._log(number).read_text(errors="replace")[-4000:]


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rank_environment(global_rank: int, world_size: int, port: int) -> dict[str, str]:
    """What the deepspeed launcher would set, and what keeps the processes small and quiet."""
    return {
        "RANK": str(global_rank),
        "LOCAL_RANK": str(global_rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "PYTHONWARNINGS": "ignore",
    }


def _load(name: str, file: str) -> Any:
    """The module of a job, under the name that pytest gave it, so that pickles agree."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        # What imports leave is for ever: an engine's two collections need not go through it.
        gc.collect()
        gc.freeze()
    return sys.modules[name]


def _work(connection: Connection) -> None:
    while True:
        try:
            header, body = connection.recv_bytes(), connection.recv_bytes()
        except EOFError:
            return
        try:
            name, file, function = pickle.loads(header)
            module = _load(name, file)
            answer = pickle.dumps((True, getattr(module, function)(*pickle.loads(body))))
        except BaseException:
            answer = pickle.dumps((False, traceback.format_exc()))
        connection.send_bytes(answer)


def _main() -> None:
    """One process of the pool."""
    die_with_parent = 1
    ctypes.CDLL(None).prctl(die_with_parent, signal.SIGKILL)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    sys.path[0] = str(ROOT)
    from datetime import timedelta

    import torch.distributed

    import vlds.launch

    vlds.launch.OTHERS_SPEAK_AFTER_S = 0.0  # no launcher ends them; all shall answer
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{sys.argv[2]}",
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=timedelta(seconds=120),
    )
    _work(Connection(int(sys.argv[1])))
    # Without the destructors of the process group, which now and then abort.
    os._exit(0)


if __name__ == "__main__":
    _main()
