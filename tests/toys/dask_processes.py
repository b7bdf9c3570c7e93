"""A real Dask cluster on this machine, by the commands that a user gives; and pictures and encoders
that kill a worker or the scheduler when they are read."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from data_prep.packing.source import RawPicture
from tests.toys.files import ROOT
from tests.toys.forks import free_port
from tests.toys.processes import until


class DaskProcesses:
    """A scheduler, and workers with a nanny, which starts a killed worker again."""

    def __init__(
        self,
        folder: Path,
        workers: int = 2,
        environment: Mapping[str, str] | None = None,
        hidden: Path | None = None,
        forks: bool = True,
    ) -> None:
        """`hidden`: a folder that the workers do not see. `forks`: workers have imported everything
        when they start, for which the first of them start later."""
        self.hidden, self.forks, self.started = hidden, forks, 0
        self.folder, self.num_workers = folder, workers
        self.address = f"tcp://127.0.0.1:{free_port()}"
        self.executor = f"dask={self.address}"
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD": "fork" if forks else "spawn",
            "DS_ACCELERATOR": "cpu",
            **(environment or {}),
        }
        self.processes: list[subprocess.Popen[bytes]] = []
        self.start()

    def _start(self, *words: str, hidden: Path | None = None) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "dask", *words]
        if hidden is not None:
            hide = f"mount -t tmpfs none {hidden} && exec {shlex.join(command)}"
            command = ["unshare", "-m", "sh", "-c", hide]
        with open(self.folder / "dask.log", "ab") as log:
            return subprocess.Popen(
                command,
                env=self.environment,
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )

    def start(self) -> None:
        port = self.address.rpartition(":")[2]
        scheduler = self._start(
            "scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard"
        )
        workers = self._start(
            "worker", self.address, "--nworkers", str(self.num_workers), "--nthreads", "1",
            "--no-dashboard", "--local-directory", str(self.folder),
            *["--preload-nanny", "tests.toys.dask_imports"] * self.forks, hidden=self.hidden,
        )  # fmt: skip
        self.processes = [scheduler, workers]
        (self.folder / "scheduler.pid").write_text(str(scheduler.pid))
        self.started += self.num_workers
        until(lambda: "Scheduler at:" in self.log(), 240)
        until(lambda: self.log().count("Register worker addr") >= self.started, 240)

    def workers(self) -> list[psutil.Process]:
        """The processes that work, below the nannies' command."""
        with suppress(psutil.Error):
            below = psutil.Process(self.processes[1].pid).children(recursive=True)
            return [process for process in below if "resource_tracker" not in process.cmdline()[-1]]
        return []

    def restart_when_dead(self) -> threading.Thread:
        """Start all again as soon as the scheduler has been killed."""

        def watch() -> None:
            self.processes[0].wait(timeout=120)
            self.stop()
            self.start()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        for process in self.processes[::-1]:
            with suppress(psutil.Error):
                for child in psutil.Process(process.pid).children(recursive=True):
                    with suppress(psutil.Error):
                        child.kill()
            process.kill()
            process.wait(timeout=30)

    def log(self) -> str:
        return (self.folder / "dask.log").read_text("utf-8", "replace")


def kill_once(marker: Path | None, pid: int) -> None:
    """Kill a process, unless that has been done before; without a marker, always."""
    with suppress(FileExistsError):
        if marker is not None:
            marker.touch(exist_ok=False)
        os.kill(pid, signal.SIGKILL)
        time.sleep(5)  # of another process: let its end be seen while this one still works


@dataclass(frozen=True)
class DeadlyPicture(RawPicture):
    """Kills the worker that reads it first, or each without a marker, or the scheduler."""

    marker: Path | None = None
    victim: Path | None = None
    """File with the number of the process; None: the one that reads."""

    def read(self) -> bytes:
        kill_once(self.marker, int(self.victim.read_text()) if self.victim else os.getpid())
        return super().read()
