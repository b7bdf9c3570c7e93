"""Does what is missing of a sweep, part by part; other processes may do the same beside it."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vlds.launch.stages import Stage, StageError, run_stage, vlds
from vlds.launch.supervisor import grace_from_environment
from vlds.runtime.folder_lock import FolderInUse
from vlds.runtime.regular_file import read_text
from vlds.runtime.terminal import tell
from vlds.runtime.whole_file import write_whole
from vlds.sweep.claims import claim, is_claimed, wait_until_free
from vlds.sweep.file import Preparation, Sweep, folder_name, preparations
from vlds.sweep.runs import SweepRun, prepared_run

CLAIMS, FAILED, MADE = "claims", "failed", "made"
"""Folders of a sweep: who does what, what has failed, and the commands that have prepared."""
OURS = {"vlds": vlds(), "python": [sys.executable]}
"""Program in a command -> what it stands for: the vlds and the Python that run the sweep."""
POLL_S = 2.0
"""Seconds between two looks at what another process prepares."""


class Part(Protocol):
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
        """For people, and for the claim."""
        return f"prepare {self.product}"

    @property
    def command(self) -> str:
        """The command in one line."""
        return shlex.join(self.words)

    @property
    def is_done(self) -> bool:
        """True if nothing is left to do."""
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
        """The command."""
        program, *rest = self.words
        write_whole(self.record, f"{self.command}\n")
        yield Stage(self.name, self.product, [*OURS.get(program, [program]), *rest])


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
        """For people, and for the claim."""
        return self.run.name

    @property
    def needs(self) -> Sequence[Path]:
        """What must be prepared before."""
        return self.run.needs

    @property
    def is_done(self) -> bool:
        """True if nothing is left to do."""
        return self.run.is_done

    def stages(self, ranks: Sequence[str]) -> Iterator[Stage]:
        """Training, from its newest state; then scores.

        Errors: FolderInUse if another program writes into the run's folder.
        """
        run, folder = self.run, self.run.folder
        wait_until_free(folder, 2 * grace_from_environment())
        if not run.is_trained:
            run.check()
            run.write_recipe()
            words = ("train", run.file, "--resume", "auto", *ranks)
            yield Stage(self.name, folder / "artifact", vlds(*words))
        if not run.is_done:
            words = ("evaluate", "--run", folder, "--split", run.split, *ranks)
            yield Stage(f"score {self.name}", folder / "predictions", vlds(*words))


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


class Work:
    """The parts of a sweep, and what this process knows of them."""

    def __init__(self, sweep: Sweep, runs: Sequence[SweepRun]) -> None:
        self.folder = Path(sweep.output)
        self.preparations = preparation_parts(sweep)
        self.runs = [RunPart(run) for run in runs]
        self.parts: list[Part] = [*self.preparations, *self.runs]
        self.failed: dict[str, str] = {}
        """Name of a part -> why it failed or cannot start, in words."""
        self._done: set[str] = set()
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
            elif self._is_blocked():
                time.sleep(POLL_S)
            else:
                return

    @property
    def missing(self) -> list[Part]:
        """The parts that are neither done nor failed, those that nobody does first."""
        for part in self.parts:
            if part.name not in self._done and part.is_done:
                self._done.add(part.name)
            elif part.name not in self.failed:
                self._note_failure(part)
        known = self._done | self.failed.keys()
        missing = [part for part in self.parts if part.name not in known]
        # To look at a claim of another host may take a while.
        return sorted(missing, key=lambda part: is_claimed(self._place(CLAIMS, part)))

    def _do_one(self, ranks: Sequence[str]) -> Part | None:
        """Do the first part that can be done; None if there is none."""
        for part in self.missing:
            if all(need.exists() for need in part.needs):
                with suppress(FolderInUse), claim(self._place(CLAIMS, part)):
                    if not part.is_done:
                        self._attempt(part, ranks)
                        return part
        return None

    def _attempt(self, part: Part, ranks: Sequence[str]) -> None:
        mark = self._place(FAILED, part)
        mark.unlink(missing_ok=True)
        try:
            for stage in part.stages(ranks):
                run_stage(stage, f"{self.parts.index(part) + 1} of {len(self.parts)}", {})
            if not part.is_done:
                raise StageError("its commands have ended, but what they make is not there")
        except (StageError, ValueError) as error:
            self.failed[part.name] = str(error)
            write_whole(mark, f"{error}\n")
            tell(f"vlds sweep: {part.name}: {error}", error=True, flush=True)

    def _note_failure(self, part: Part) -> None:
        """Remember a part that another process has failed at since this one began, or whose
        preparation has failed."""
        with suppress(FileNotFoundError):
            if self._mark_of(part) not in (None, self._earlier[part.name]):
                reason = read_text(self._place(FAILED, part)).strip()
                self.failed[part.name] = f"in another process: {reason}"
        for other in self.preparations:
            if other.product in part.needs and other.name in self.failed:
                self.failed[part.name] = f"cannot start without {other.name}"

    def _mark_of(self, part: Part) -> tuple[int, int] | None:
        """Which mark says that a part has failed: each failure writes a new file. None if there is
        none."""
        try:
            stat = self._place(FAILED, part).stat()
        except FileNotFoundError:
            return None
        return stat.st_ino, stat.st_mtime_ns

    def _is_blocked(self) -> bool:
        """True if a part waits for what another process prepares."""
        return any(not need.exists() for part in self.missing for need in part.needs)

    def _place(self, folder: str, part: Part) -> Path:
        """A path of this part below one of the sweep's folders."""
        return self.folder / folder / folder_name(part.name)
