"""Folders: what a run's folder records of its starts, the lock of a folder's only writer, and
temporary folders that are removed however their processes end.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import re
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from stat import S_ISDIR

from vlds.runtime.disk import append, make_folder, writable
from vlds.runtime.files import check_file, read_text
from vlds.runtime.json_files import parse_json, parse_record
from vlds.runtime.terminal import tell, without_credentials

PREDICTIONS = "predictions"
BLANK = "blank"
"""Folder of predictions that were made from blank pictures."""
STEP = re.compile(r"step-(\d+)")
"""Folder of the predictions of an evaluation during training."""
STARTS = "starts.jsonl"
"""A run's record of starts, which training writes and a report reads."""
PACKAGES = ("vlds", "torch", "deepspeed", "transformers")
CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Start:
    """One start of a run: the first, or one that resumed it."""

    time: str
    """UTC, in seconds: "2026-03-01T12:00:00+00:00"."""
    step: int
    """Steps done before this start."""
    command: str
    hardware: str
    versions: Mapping[str, str]
    changes: Sequence[str] = field(default_factory=list)
    """Changes of the recipe since the start before, such as "optimizer.eps: 1e-06 -> 1e-08"."""

    def __post_init__(self) -> None:
        datetime.fromisoformat(self.time)


def newest_step(predictions: Path) -> int | None:
    """The training step of the newest evaluation whose predictions are below a folder; None if
    there are none."""
    matches = (STEP.fullmatch(path.name) for path in predictions.glob("step-*"))
    return max((int(match[1]) for match in matches if match), default=None)


def add_start(run: Path, step: int, command: str, hardware: str, changes: Sequence[str]) -> None:
    """Record a start that happens now, on disk when this returns.

    Errors: CannotWrite.
    """
    time = datetime.now(UTC).isoformat(timespec="seconds")
    start = Start(time, step, command, hardware, versions_here(), list(changes))
    append(run / STARTS, json.dumps(asdict(start)) + "\n")


def versions_here() -> dict[str, str]:
    """Versions of this process's main packages and of Python."""
    return {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}


def read_starts(run: Path) -> list[Start]:
    """The starts of a run. Damaged lines are skipped: the record never stops a report."""
    file = run / STARTS
    text = read_text(file, errors="replace") if file.is_file() else ""
    starts = []
    for line in text.split("\n"):
        with suppress(ValueError):
            starts.append(parse_record(Start, line))
    return starts


def cpu_name() -> str:
    """Model of the processor, and the number of cores that this process may use."""
    lines = CPU_INFO.read_text("utf-8", "replace").split("\n") if CPU_INFO.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    # Not os.cpu_count: containers and job schedulers give a process some of the cores.
    cores = len(os.sched_getaffinity(0))
    return f"{names[0] if names else platform.machine()}, {cores} core{'s' * (cores > 1)}"


# One writer per folder: a second program is refused, with the name of the first.
#
# The lock is a file in the folder that names its writer: host, process, start and command. The
# writer holds a POSIX record lock on it, which the system releases when the process ends. Some file
# systems do not pass such locks on to other hosts, so the writer also touches the file every few
# seconds; a lock of another host counts as abandoned if nobody touches it for a while. POSIX locks
# belong to a process, so forked workers do not inherit them. But closing any descriptor of the file
# releases them, so no other module may open it.

NAME = ".vlds.lock"
BEAT_S = 5.0
"""Seconds between a writer's signs of life."""
ABANDONED_S = 4 * BEAT_S
"""Seconds without a sign of life after which another host's lock is abandoned."""

_held: set[tuple[int, int]] = set()
"""Device and inode of the files that this process has locked: POSIX locks do not keep a process
from locking a file twice."""


class FolderInUse(ValueError):
    """Another program writes into the folder."""


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold a folder for this process alone; it is created if missing.

    Errors: FolderInUse that names the folder and the program that writes there; CannotWrite if the
    folder cannot be written; NotAFile if the lock's path is not a regular file.
    """
    path = folder / NAME
    with writable(folder):
        make_folder(folder)
        descriptor = _open_locked(path)
    key = _identity(os.fstat(descriptor))
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_S):
            with suppress(OSError):
                os.utime(descriptor)

    try:
        _held.add(key)
        with writable(folder):
            # In place: a file that is renamed here would not be the locked one.
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(_own_record()).encode(), 0)
        threading.Thread(target=beat, daemon=True).start()
        yield
    finally:
        ended.set()
        # Remove the file while it is locked: afterwards it may be the next writer's.
        with suppress(OSError):
            path.unlink()
        _held.discard(key)
        os.close(descriptor)


def _open_locked(path: Path) -> int:
    """Lock the file; its descriptor.

    Errors: FolderInUse; OSError if the file cannot be opened or locked at all.
    """
    here = socket.gethostname()
    while True:
        with suppress(FileNotFoundError):
            check_file(path)
            # Before opening it: closing the second descriptor would release this process's lock.
            if _identity(os.stat(path)) in _held:
                raise FolderInUse(_refusal(path, _own_record()))
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The name may stand for a newer file by now, which another process may have locked.
            is_current = False
            with suppress(FileNotFoundError):
                is_current = _identity(os.stat(path)) == _identity(os.fstat(descriptor))
            if is_current:
                record = _read(descriptor)
                if record.get("host", here) == here:
                    return descriptor
                # The lock of another host may not reach this one, but its signs of life do.
                before = os.fstat(descriptor).st_mtime_ns
                tell(
                    f"{path.parent} was written by {_words(record)}; waiting {ABANDONED_S:.0f} s "
                    "for a sign of life",
                    error=True,
                    flush=True,
                )
                time.sleep(ABANDONED_S)
                if os.stat(path).st_mtime_ns == before:
                    return descriptor
        except OSError as error:
            record = _read(descriptor)
            os.close(descriptor)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise FolderInUse(_refusal(path, record)) from None
            raise
        os.close(descriptor)
        if is_current:
            raise FolderInUse(_refusal(path, record))
        # Its holder removed the file between opening and locking it: try again with a new one.


def _identity(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino


def _own_record() -> dict[str, str]:
    words = [Path(sys.argv[0]).name or "python", *sys.argv[1:]]
    return {
        "host": socket.gethostname(),
        "pid": str(os.getpid()),
        "start": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": without_credentials(" ".join(words))[:200],
    }


def _read(descriptor: int) -> dict[str, str]:
    """What the lock file says; nothing if its writer has only just created it."""
    try:
        record = parse_json(os.pread(descriptor, 1 << 12, 0))
        return {str(key): str(value) for key, value in record.items()}
    except (ValueError, AttributeError):
        return {}


def _words(record: dict[str, str]) -> str:
    """Who writes, in words."""
    if not record:
        return "another program that has just started"
    return (
        f"process {record.get('pid')} on {record.get('host')}, started {record.get('start')} "
        f"({record.get('command')})"
    )


def _refusal(path: Path, record: dict[str, str]) -> str:
    return (
        f"{path.parent} is being written by {_words(record)}; wait until it has ended, or name "
        "another folder"
    )


# Temporary folders: for the sockets of loader workers, files between a supervisor and its ranks,
# and outputs of programs that vlds calls.
#
# A process that is killed cannot remove its folder. So each folder holds a lock, which the system
# releases when its maker and all that it has forked have ended; whoever makes a folder, or has seen
# a run end, removes those that nobody holds any more.

PREFIX, LOCK = ".vlds-scratch-", "lock"
LONGEST = 107 - len(f"/{PREFIX}12345678/listener-12345678")
"""Bytes that the path of the folder above may have: that of a worker's socket may have 107. Both
names end in eight characters that tempfile draws."""


def above_scratch() -> Path:
    """The system's folder for temporary ones; /tmp if its path is too long for sockets."""
    folder = tempfile.gettempdir()
    return Path(folder if len(os.fsencode(folder)) <= LONGEST else "/tmp")


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder among the system's temporary ones, which is gone afterwards."""
    # Also here, not only at a run's end: a process that was killed could not clean up.
    remove_abandoned()
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=above_scratch()))
        with suppress(FileNotFoundError):
            descriptor = _open_lock(folder)
            is_held = True
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                is_held = False
            except OSError:  # a file system without locks: nobody else holds it either
                pass
            if is_held and (folder / LOCK).exists():
                break
            os.close(descriptor)
        # Somebody took it for abandoned before it was locked: try again with a new one.
    try:
        yield folder
    finally:
        # The lock goes last: nobody else may take the folder for abandoned in the meantime.
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def remove_abandoned() -> None:
    """Remove this user's folders that no process holds."""
    with suppress(OSError):
        for folder in above_scratch().glob(f"{PREFIX}*"):
            with suppress(OSError):
                # All users share the folder above: a link there may lead anywhere.
                stat = folder.lstat()
                if not S_ISDIR(stat.st_mode) or stat.st_uid != os.getuid():
                    continue
                descriptor = _open_lock(folder)
                try:
                    # OSError if somebody holds it, or if the file system has no locks.
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
                finally:
                    os.close(descriptor)


def _open_lock(folder: Path) -> int:
    return os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
