"""Does what is missing of a sweep, part by part; other processes may do the same beside it.

At most one process on all hosts does a part at a time: it holds a folder that stands for the part
(`folder_lock`). The system releases the claim of a dead process of this host; that of another host
is taken over when it has given no sign of life for a while.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vlds.cli.supervisor import Stage, StageError, grace_from_environment, run_stage, vlds
from vlds.recipe.config import save_recipe
from vlds.report.sweep import Preparation, Sweep, SweepRun, folder_name, preparations, prepared_run
from vlds.runtime.artifact_files import home_of
from vlds.runtime.disk import CannotWrite, writable
from vlds.runtime.files import read_text, write_whole
from vlds.runtime.folders import PREDICTIONS, FolderInUse, folder_lock
from vlds.runtime.process import python
from vlds.runtime.terminal import shell_command, tell

CLAIMS, FAILED, MADE = "claims", "failed", "made"
"""Folders of a sweep: who does what, what has failed, and the commands that have prepared."""
OURS = {"vlds": vlds, "python": python}
"""Program in a command -> what makes it: the vlds and the Python that run the sweep."""
PREPARE_POLL_S = 2.0
"""Seconds between two looks at what another process prepares."""


def claim(folder: Path) -> AbstractContextManager[None]:
    """Hold a part of a sweep for this process. The claim's file stays afterwards, because other
    hosts may see late what was done under it: they wait until they do.

    Errors: FolderInUse if another process holds it; CannotWrite.
    """
    return folder_lock(folder, keep=True)


def wait_until_free(folder: Path, seconds: float) -> None:
    """Wait until nobody writes into a run's folder: the ranks of a sweep that was killed save and
    end by themselves.

    Errors: FolderInUse if somebody still writes after so many seconds.
    """
    deadline = time.monotonic() + seconds
    while folder.is_dir():
        try:
            with folder_lock(folder):
                return
        except FolderInUse:
            if time.monotonic() > deadline:
                raise
        time.sleep(1)


class SweepPart(Protocol):
    """What one process does at a time."""

    @property
    def name(self) -> str:
        """For people, and for the claim."""

    @property
    def needs(self) -> Sequence[Path]:
        """What must exist before."""

    @property
    def is_done(self) -> bool:
        """True if nothing is left to do."""

    def stages(self, ranks: Sequence[str]) -> Iterator[Stage]:
        """The commands that are left; `ranks`: words that say how many."""


@dataclass(frozen=True)
class PreparePart:
    """A command of `prepare`."""

    product: Path
    words: Sequence[str]
    needs: Sequence[Path]
    record: Path
    """File with the command that has made it."""

    @property
    def name(self) -> str:
        return f"prepare {self.product}"

    @property
    def command(self) -> str:
        return shell_command(*self.words)

    @property
    def is_done(self) -> bool:
        return self.product.exists()

    def check(self) -> None:
        """Errors: ValueError if the sweep has made the product by another command; or if the
        command is left to do and its program is not installed."""
        with suppress(FileNotFoundError):
            if self.is_done and (made := read_text(self.record).strip()) != self.command:
                raise ValueError(
                    f"prepare.{self.product}: it was made by `{made}`, and the sweep says "
                    f"`{self.command}`; remove it, so that it is made again, or rename it"
                )
        program = self.words[0]
        # An earlier command may make the program that a path names.
        if self.is_done or program in OURS or "/" in program or shutil.which(program):
            return
        raise ValueError(
            f"prepare.{self.product}: no program is called '{program}' here; install it, or name "
            "another"
        )

    def stages(self, ranks: Sequence[str]) -> Iterator[Stage]:
        program, *rest = self.words
        write_whole(self.record, f"{self.command}\n")
        command = OURS[program](*rest) if program in OURS else self.words
        yield Stage(self.name, self.product, list(command))


@dataclass(frozen=True)
class RunPart:
    """A run: training, and the scores of its test data."""

    run: SweepRun

    @property
    def product(self) -> Path:
        """What its training writes last."""
        return self.run.product

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def needs(self) -> Sequence[Path]:
        return self.run.needs

    @property
    def is_done(self) -> bool:
        return self.run.is_done

    def stages(self, ranks: Sequence[str]) -> Iterator[Stage]:
        """Training, from its newest state; then scores.

        Errors: FolderInUse if another program writes into the run's folder.
        """
        # The ranks of a sweep that was killed have one grace time, and so has their supervisor.
        run, folder = self.run, self.run.folder
        wait_until_free(folder, 2 * grace_from_environment())
        if run.is_trained:
            if (damage := run.damage) is not None:
                raise ValueError(damage)
        else:
            run.check()
            save_recipe(run.recipe, run.file)
            words = ("train", run.file, "--resume", "auto", *ranks)
            yield Stage(self.name, folder / "artifact", vlds(*words))
        if not run.is_done:
            words = ("evaluate", "--run", folder, "--split", run.split, *ranks)
            yield Stage(f"score {self.name}", home_of(folder) / PREDICTIONS, vlds(*words))


def preparation_parts(sweep: Sweep) -> list[PreparePart | RunPart]:
    """Preparations in the order of the file. Each needs the earlier ones that are for all seeds or
    for its own.

    Errors: ValueError for a mistake in a recipe, or a program that is not installed.
    """
    parts: list[PreparePart | RunPart] = []
    earlier: list[Preparation] = []
    for made in preparations(sweep):
        needs = [
            other.last for other in earlier
            if made.seed is None or other.seed in (None, made.seed)
        ]  # fmt: skip
        if made.tree:
            parts.append(RunPart(prepared_run(sweep, made, needs)))
        else:
            record = Path(sweep.output, MADE, folder_name(str(made.product)))
            command = PreparePart(made.product, made.command, needs, record)
            command.check()
            parts.append(command)
        earlier.append(made)
    return parts


class SweepWork:
    """The parts of a sweep, and what this process knows of them."""

    def __init__(self, sweep: Sweep, runs: Sequence[SweepRun]) -> None:
        self.folder = Path(sweep.output)
        self.preparations = preparation_parts(sweep)
        self.runs = [RunPart(run) for run in runs]
        self.parts: list[SweepPart] = [*self.preparations, *self.runs]
        self.failed: dict[str, str] = {}
        """Name of a part -> why it failed or cannot start, in words."""
        self._done: set[str] = set()
        self._lost: set[str] = set()
        """Preparations that were done, and whose product has vanished."""
        self._earlier = {part.name: self._mark_of(part) for part in self.parts}
        """Name of a part -> its mark of failure when this process began."""

    def do(self, most: int | None, ranks: Sequence[str]) -> None:
        """Do what is missing and free, at most so many runs. Waits for what others prepare.

        Errors: Interrupted if a signal ended a command.
        """
        tried = 0
        while most is None or tried < most:
            if (part := self._do_one(ranks)) is not None:
                tried += part in self.runs
            elif any(not need.exists() for part in self.missing for need in part.needs):
                time.sleep(PREPARE_POLL_S)
            else:
                return

    @property
    def missing(self) -> list[SweepPart]:
        """The parts that are neither done nor failed, those that nobody does first."""
        for made in self.preparations:
            # Somebody has removed it: it is made again, once, because two commands may remove what
            # the other one makes.
            if made.name in self._done and not made.product.exists():
                self._done.remove(made.name)
                if made.name in self._lost:
                    self.failed[made.name] = f"something removes {made.product} again and again"
                self._lost.add(made.name)
        for part in self.parts:
            if part.name not in self._done and part.is_done:
                self._done.add(part.name)
            elif part.name not in self.failed:
                # Another process may have failed at it since this one began.
                with suppress(FileNotFoundError):
                    if self._mark_of(part) not in (None, self._earlier[part.name]):
                        reason = read_text(self._place(FAILED, part)).strip()
                        self.failed[part.name] = f"in another process: {reason}"
                for other in self.preparations:
                    if other.product in part.needs and other.name in self.failed:
                        self.failed[part.name] = f"cannot start without {other.name}"
        known = self._done | self.failed.keys()
        missing = [part for part in self.parts if part.name not in known]
        # Whether a part that somebody has begun is free takes a while to find out on another host.
        return sorted(missing, key=lambda part: self._place(CLAIMS, part).exists())

    def _do_one(self, ranks: Sequence[str]) -> SweepPart | None:
        """Do the first part that can be done; None if there is none. A failure is noted, for other
        processes in a file."""
        for part in self.missing:
            if not all(need.exists() for need in part.needs):
                continue
            with suppress(FolderInUse), claim(self._place(CLAIMS, part)):
                # Another process may have done it, or failed at it, since `missing` has looked.
                if part not in self.missing:
                    continue
                # An old mark must go before the part runs: whoever reads it would give up on it.
                mark = self._place(FAILED, part)
                with writable(mark):
                    mark.unlink(missing_ok=True)
                try:
                    for stage in part.stages(ranks):
                        run_stage(stage, f"{self.parts.index(part) + 1} of {len(self.parts)}", {})
                    if not part.is_done:
                        raise StageError("its commands have ended, but what they make is not there")
                except (StageError, ValueError) as error:
                    self.failed[part.name] = str(error)
                    tell(f"vlds sweep: {part.name}: {error}", error=True, flush=True)
                    # A full disk stops those parts alone that write more than it holds.
                    try:
                        write_whole(mark, f"{error}\n")
                    except CannotWrite as refused:
                        tell(f"vlds sweep: {part.name}: {refused}", error=True, flush=True)
                return part
        return None

    def _mark_of(self, part: SweepPart) -> tuple[int, int] | None:
        """Identifies the file that says that a part has failed: each failure writes a new one. None
        if there is none."""
        try:
            stat = self._place(FAILED, part).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return stat.st_ino, stat.st_mtime_ns

    def _place(self, folder: str, part: SweepPart) -> Path:
        """A path of this part below one of the sweep's folders."""
        return self.folder / folder / folder_name(part.name)
