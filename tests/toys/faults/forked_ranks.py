"""Ranks that start at once: a process that has imported everything forks them.

A cold rank imports for seconds, and fifty kill points are a hundred starts. The fork is sound: the
process has one thread and has run no tensor operation. Each rank does what the launcher would have
it do (`vlds.cli.rank.run_rank`), so messages and exit codes are the real ones.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

import vlds.cli.rank
from tests.toys.files import ROOT
from tests.toys.forks import Child, free_port, rank_environment, start
from vlds.cli.main import run_command
from vlds.training.engine import Engine

FILE_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")
"""Python's audit events when a file is made, moved, deleted or opened (also to flush it)."""


@dataclass(frozen=True)
class Plan:
    """What happens to a rank: at most one of these."""

    file_event: int | None = None
    """Killed at this file event in the run's folder, counted from 1."""
    step: int | None = None
    """Killed after `delay` seconds in this step."""
    delay: float = 0.0
    memory: int | None = None
    """Limit, from its second step on, of the bytes of memory that it may add."""
    file_bytes: int | None = None
    """Limit, from its second step on, of the bytes of each file that it writes."""


@dataclass
class ForkedRanks:
    """Ranks on one command, started together."""

    world_size: int = 2
    ranks: list[Child] = field(default_factory=list)

    def start(
        self, run: Path, arguments: Sequence[str], plans: dict[int, Plan] | None = None
    ) -> list[int]:
        """Start ranks on a command line of `vlds`; their process ids. They log to RUN-0.log etc."""
        port = free_port()
        self.ranks = [
            start(
                _rank,
                rank,
                run,
                list(arguments),
                (plans or {}).get(rank, Plan()),
                log=_log(run, rank),
                environment={"VLDS_GRACE_S": "20"} | rank_environment(rank, self.world_size, port),
            )
            for rank in range(self.world_size)
        ]
        return self.pids

    @property
    def pids(self) -> list[int]:
        """Process ids of the ranks."""
        return [rank.pid for rank in self.ranks]

    def wait(self, seconds: float = 60) -> list[int]:
        """Exit codes of all ranks, -n after signal n; ranks that are still running are killed."""
        deadline = time.monotonic() + seconds
        for rank in self.ranks:
            if rank.exit_code(deadline - time.monotonic()) is None:
                rank.kill()
        return [rank.exit_code() or 0 for rank in self.ranks]

    def wait_for_first(self, seconds: float = 60) -> list[int]:
        """Exit codes of all ranks; as soon as one has ended, SIGUSR2 ends the others."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            running = [rank.pid for rank in self.ranks if rank.exit_code() is None]
            if len(running) < len(self.ranks):
                for pid in running:
                    # Ends a rank as SIGKILL does, and can be told from what a plan does to one.
                    os.kill(pid, signal.SIGUSR2)
                    os.kill(pid, signal.SIGCONT)  # also one that was stopped
                break
            time.sleep(0.01)
        return self.wait(max(0.0, deadline - time.monotonic()))


def _log(run: Path, global_rank: int) -> Path:
    return run.with_name(f"{run.name}-{global_rank}.log")


def log_of(run: Path, global_rank: int) -> str:
    """What a rank has printed."""
    return _log(run, global_rank).read_text(errors="replace")


def _rank(global_rank: int, run: Path, words: list[str], plan: Plan) -> None:
    os.chdir(ROOT)
    _watch_files(run, global_rank, plan)
    _watch_steps(run, global_rank, plan)
    vlds.cli.rank.run_rank(words, run_command)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _watch_files(run: Path, global_rank: int, plan: Plan) -> None:
    """Record each file event in the run's folder, and die at the planned one."""
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
    """Record the example ids of each step, and die in the planned step."""
    step: Callable[..., Any] = Engine.step
    ids = run.with_name(f"{run.name}-ids-{global_rank}.jsonl")

    def watched(engine: Engine, batches: Sequence[Any]) -> Any:
        next_step = engine.steps_done + 1
        if next_step == plan.step:
            threading.Timer(plan.delay, _die).start()
        if next_step == 2:
            _limit(plan)
        report = step(engine, batches)
        line = json.dumps({"step": next_step, "ids": [id for batch in batches for id in batch.ids]})
        with ids.open("a") as file:
            file.write(line + "\n")
        return report

    Engine.step = watched  # type: ignore[method-assign]


def _limit(plan: Plan) -> None:
    if plan.memory is not None:
        used = psutil.Process().memory_info().vms
        resource.setrlimit(resource.RLIMIT_AS, (used + plan.memory, resource.RLIM_INFINITY))
    if plan.file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (plan.file_bytes, resource.RLIM_INFINITY))
