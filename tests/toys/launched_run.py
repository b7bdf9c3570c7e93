"""A real run through the launcher, with processes that a test may disturb."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.toys.files import ROOT
from vlds.cli.supervisor import is_rank_itself
from vlds.recipe.config import Recipe, save_recipe

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


class Launch:
    """`vlds train --config RECIPE ...` on two ranks, started by vlds or by torchrun."""

    def __init__(
        self,
        recipe: Recipe,
        file: Path,
        *arguments: str,
        torchrun: bool = False,
        on_cpu: bool = True,
    ) -> None:
        self.run = Path(recipe.output)
        save_recipe(recipe, file)
        command = ["-m", "vlds", "train", "--config", str(file), *arguments]
        command = [*TORCHRUN, *command] if torchrun else [*command, "--ranks", "2"]
        self.process = subprocess.Popen(
            [sys.executable, *command],
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                **({"DS_ACCELERATOR": "cpu"} if on_cpu else {}),
            },
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_for_step(self, step: int) -> None:
        """Wait until this step is in the run's metrics."""
        deadline = time.monotonic() + 150
        while last_step(self.run) < step:
            assert self.process.poll() is None, self.end()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def ranks(self) -> list[psutil.Process]:
        """The two processes that train."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        return [process for process in below if is_rank_itself(process)]

    def end(self, timeout: float = 120) -> tuple[int, str]:
        """Exit code and output."""
        try:
            output, _ = self.process.communicate(timeout=timeout)
        finally:
            self.process.kill()
        return self.process.returncode, output


def words_of(process: psutil.Process) -> list[str]:
    """Command line of a process; empty if it has ended."""
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def last_step(run: Path) -> int:
    """The last step in a run's metrics; 0 without any."""
    file = run / "metrics.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return max((json.loads(line)["step"] for line in lines), default=0)
