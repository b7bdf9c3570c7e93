"""A pool of gloo processes for the tests of distributed code.

The processes are started once and then execute one job after another: a top-level function of a
test module, called on every process with the same arguments. The process group is initialised
before the first job, so a job may use `torch.distributed` at once and reads its global_rank from
there.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import inspect
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed

import vlds.cli.rank
import vlds.runtime.terminal
from tests.toys.files import ROOT
from tests.toys.forks import Child, rank_environment, start
from vlds.runtime.rank_environment import free_port

GRACE_S = 2.0
"""Time for the other ranks to answer after one has failed: they may wait for it for ever."""


class RankError(AssertionError):
    """A job failed, died or hung on at least one process; the message holds every traceback."""


class RankPool:
    """`world_size` processes, started at the first job and again after a job that killed them."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._processes: list[Child] = []
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
            process.kill()
        for connection in self._connections:
            connection.close()
        self._processes, self._connections = [], []

    def _start(self) -> None:
        if self._processes and all(process.exit_code() is None for process in self._processes):
            return
        self.close()
        self._folder = Path(tempfile.mkdtemp(prefix="vlds-ranks-"))
        port = free_port()
        for rank in range(self.world_size):
            ours, theirs = Pipe()
            process = start(
                _rank,
                self._folder / "store",
                log=self._log(rank),
                environment=rank_environment(rank, self.world_size, port),
                handle=theirs.fileno(),
            )
            theirs.close()
            self._processes.append(process)
            self._connections.append(ours)

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
                rank = open_ones[connection]
                try:
                    answers[rank] = pickle.loads(connection.recv_bytes())
                except (EOFError, ConnectionError):
                    code = self._processes[rank].exit_code(GRACE_S)
                    answers[rank] = (False, f"died with code {code}\n{self._tail(rank)}")
                if not answers[rank][0]:
                    deadline = min(deadline, time.monotonic() + GRACE_S)
        return answers

    def _stacks_of(self, ranks: list[int], reason: str) -> list[str]:
        for rank in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._processes[rank].pid, signal.SIGUSR1)
        time.sleep(0.5)
        return [f"global_rank {rank}: {reason}\n{self._tail(rank)}" for rank in ranks]

    def _log(self, rank: int) -> Path:
        return self._folder / f"{rank}.log"

    def _tail(self, rank: int) -> str:
        return self._log(rank).read_text(errors="replace")[-4000:]


def _load(name: str, file: str) -> Any:
    """The module of a job, under the name it has in pytest, so that pickles match."""
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


def _rank(handle: int, store: Path) -> None:
    """One process of the pool."""
    os.chdir(ROOT)
    vlds.runtime.terminal.OTHERS_SPEAK_AFTER_S = 0.0  # no launcher ends them; all shall answer
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=timedelta(seconds=120),
    )
    _work(Connection(handle))
