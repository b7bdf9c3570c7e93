"""Ranks that start in no time: a process that has imported everything and forks them.

A cold rank imports for seconds, and fifty kill points are a hundred starts. The fork is sound: the
process has one thread and has run no tensor operation. Each rank does what the launcher would have
it do (`vlds.launch.run_rank`), so messages and exit codes are the real ones.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import psutil

from tests.rank_pool import ROOT, free_port, rank_environment

PR_SET_PDEATHSIG = 1
FILE_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")
"""Python's own audit events of a file that is made, moved, deleted or opened (also to flush it)."""


QUIET = {"VLDS_GRACE_S": "20", "TORCHINDUCTOR_COMPILE_THREADS": "1"}


@dataclass(frozen=True)
class Plan:
    """What befalls a rank: at most one of these."""

    file_event: int | None = None
    """Killed at this file event in the run's folder, counted from 1."""
    step: int | None = None
    """Killed after `delay` seconds in this step."""
    delay: float = 0.0
    memory: int | None = None
    """From its second step on it may take so many more bytes of memory."""
    file_bytes: int | None = None
    """From its second step on no file that it writes may be larger."""


@dataclass
class Warm:
    """The forking process, and what of it is running."""

    world_size: int = 2
    pids: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._pipe, theirs = Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.warm", str(theirs.fileno())],
            cwd=ROOT,
            env=os.environ | rank_environment(0, 1, 0) | QUIET,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()

    def start(
        self, run: Path, arguments: Sequence[str], plans: dict[int, Plan] | None = None
    ) -> list[int]:
        """Start ranks on a command line of `vlds`; their process ids. Logs go beside `run`."""
        self._pipe.send(("start", self.world_size, free_port(), run, list(arguments), plans or {}))
        self.pids = self._pipe.recv()
        return self.pids

    def wait(self, seconds: float = 60) -> list[int]:
        """Exit codes (-n by signal n) of all ranks; those that have not ended by then are killed
        and give -9."""
        self._pipe.send(("wait", seconds))
        codes: list[int] = self._pipe.recv()
        return codes

    def wait_for_first(self, seconds: float = 60) -> list[int]:
        """Exit codes of all ranks; once one has ended the others are ended by SIGUSR2."""
        self._pipe.send(("first", seconds))
        codes: list[int] = self._pipe.recv()
        return codes

    def close(self) -> None:
        """End the forking process; ranks die with it."""
        self._process.kill()
        self._process.wait()


def log_of(run: Path, global_rank: int) -> str:
    """What a rank has said."""
    return run.with_name(f"{run.name}-{global_rank}.log").read_text(errors="replace")


def _serve(pipe: Connection) -> None:
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401 (what `deepspeed.initialize` imports)

    import vlds.cli
    import vlds.launch
    import vlds.training.loop

    vlds.launch.OTHERS_SPEAK_AFTER_S = 0.5  # no launcher is to be waited for
    # What imports leave is for ever: a rank's collections need not go through it.
    gc.collect()
    gc.freeze()
    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads must not fork"
    pids: list[int] = []
    while True:
        try:
            word, *rest = pipe.recv()
        except EOFError:
            return
        if word == "start":
            world_size, port, *job = rest
            pids = [_fork(n, world_size, port, *job) for n in range(world_size)]
            pipe.send(pids)
        else:
            pipe.send(_reap(pids, rest[0], first=word == "first"))


def _reap(pids: list[int], seconds: float, first: bool) -> list[int]:
    deadline = time.monotonic() + seconds
    codes: dict[int, int] = {}
    while len(codes) < len(pids):
        for pid in set(pids) - codes.keys():
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            elif first and codes:
                # Ends a rank as SIGKILL does, and can be told from what a plan does to one.
                os.kill(pid, signal.SIGUSR2)
                os.kill(pid, signal.SIGCONT)  # also one that was stopped
        time.sleep(0.01)
    return [codes[pid] for pid in pids]


def _fork(
    global_rank: int,
    world_size: int,
    port: int,
    run: Path,
    words: list[str],
    plans: dict[int, Plan],
) -> int:
    pid = os.fork()
    if pid:
        return pid
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    log = os.open(
        run.with_name(f"{run.name}-{global_rank}.log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    )
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(rank_environment(global_rank, world_size, port))
    _watch_files(run, global_rank, plans.get(global_rank, Plan()))
    _watch_steps(run, global_rank, plans.get(global_rank, Plan()))
    from vlds.launch import run_rank

    run_rank(words)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _watch_files(run: Path, global_rank: int, plan: Plan) -> None:
    """Write down each file event in the run's folder, and die at the planned one."""
    below = f"{run}/"
    kept = os.open(run.with_name(f"{run.name}-events-{global_rank}"), os.O_WRONLY | os.O_CREAT)
    seen = [0]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in FILE_EVENTS or not arguments:
            return
        with contextlib.suppress(TypeError):
            if os.fsdecode(arguments[0]).startswith(below):
                seen[0] += 1
                os.write(kept, f"{event} {os.fsdecode(arguments[0])}\n".encode())
                if seen[0] == plan.file_event:
                    _die()

    sys.addaudithook(hook)


def _watch_steps(run: Path, global_rank: int, plan: Plan) -> None:
    """Write down the ids that each step has learnt from, and die in the planned one."""
    from vlds.training.engine import Engine

    step: Callable[..., Any] = Engine.step
    ids = run.with_name(f"{run.name}-ids-{global_rank}.jsonl")

    def watched(engine: Engine, batches: Sequence[Any]) -> Any:
        number = engine.steps_done + 1
        if number == plan.step:
            threading.Timer(plan.delay, _die).start()
        if number == 2:
            _limit(plan)
        report = step(engine, batches)
        line = json.dumps({"step": number, "ids": [id for batch in batches for id in batch.ids]})
        with ids.open("a") as file:
            file.write(line + "\n")
        return report

    Engine.step = watched  # type: ignore[method-assign]


def _limit(plan: Plan) -> None:
    if plan.memory is not None:
        taken = psutil.Process().memory_info().vms
        resource.setrlimit(resource.RLIMIT_AS, (taken + plan.memory, resource.RLIM_INFINITY))
    if plan.file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (plan.file_bytes, resource.RLIM_INFINITY))


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    _serve(Connection(int(sys.argv[1])))
    os._exit(0)
