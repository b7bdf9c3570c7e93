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
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from stat import S_ISDIR, S_ISREG

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
# The lock is a file in the folder that names its writer: host, process, start, command, and an id
# of this very lock. Whoever creates the file has the lock: that happens once, on network file
# systems too. The writer also holds a POSIX record lock on it, which the system releases when the
# process ends; so a dead writer of this host is found out at once. Some file systems do not pass
# such locks on to other hosts, so the writer touches the file every few seconds. A lock of another
# host counts as abandoned if nobody touches it for a while.
#
# Several processes may find a lock abandoned at once. One of them takes it over: it creates
# `.vlds.lock.after-ID`, with the id of the abandoned lock, and renames it to `.vlds.lock`. If it
# dies before the renaming, its file is the lock, and is taken over in the same way. The name is
# free again after the renaming, so whoever has created it looks whether the lock still is the one
# with this id: an id never comes back.
#
# POSIX locks belong to a process, so forked workers do not inherit them. But closing any descriptor
# of the file releases them, so no other module may open it.

NAME = ".vlds.lock"
BEAT_S = 5.0
"""Seconds between a writer's signs of life."""
ABANDONED_S = 4 * BEAT_S
"""Seconds without a sign of life after which another host's lock is abandoned. What a host has
written must reach all others within this time."""

POLL_S = 0.1
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
"""What a file system says that has no POSIX locks, such as Lustre without `-o flock`."""
FLOCK = "hhqqi"
"""Linux's struct flock: kind, from where, first byte, bytes, process."""

_held: set[tuple[int, int]] = set()
"""Device and inode of the files that this process has locked: POSIX locks do not keep a process
from locking a file twice."""


class FolderInUse(ValueError):
    """Another program writes into the folder."""


@dataclass(frozen=True)
class _Lock:
    """A lock's file as it was read."""

    path: Path
    record: dict[str, str]
    """What it says; nothing if its writer has only just created it."""
    changed: int
    """When its writer last touched it, in nanoseconds of the file system's clock."""

    @property
    def id(self) -> str:
        # A writer may have died between creating the file and writing into it.
        return self.record.get("id", str(self.changed))


@contextmanager
def folder_lock(folder: Path, *, keep: bool = False) -> Iterator[None]:
    """Hold a folder for this process alone; it is created if missing. If another host takes it over
    because this one has slept too long, this process ends itself by SIGTERM.

    `keep`: leave the file there afterwards. The next holder gets it at once on this host, and waits
    on another one, until it sees all that this one has written.

    Errors: FolderInUse that names the folder and the program that writes there; CannotWrite if the
    folder cannot be written; NotAFile if the lock's path is not a regular file.
    """
    path = folder / NAME
    with writable(folder):
        make_folder(folder)
        descriptor, key = _open_locked(path)
    own = os.pread(descriptor, 1 << 12, 0)
    ended = threading.Event()

    def beat() -> None:
        is_ours = True
        while is_ours and not ended.wait(BEAT_S):
            with suppress(OSError):
                os.utime(descriptor)
                # Some file systems number files anew, so the content decides.
                if _identity(os.stat(path)) != key:
                    is_ours = path.read_bytes() == own
        if not is_ours:
            words = "another host has taken it over, because this one gave no sign of life for"
            tell(f"{folder}: {words} {ABANDONED_S:.0f} s; this process ends", error=True)
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        threading.Thread(target=beat, daemon=True).start()
        yield
    finally:
        ended.set()
        # Remove the file while it is locked: afterwards it may be the next writer's.
        with suppress(OSError):
            if not keep and _identity(os.stat(path)) == key:
                path.unlink()
        _held.discard(key)
        os.close(descriptor)


def _open_locked(path: Path) -> tuple[int, tuple[int, int]]:
    """Take the lock; descriptor, device and inode of its file.

    Errors: FolderInUse; OSError if the file cannot be opened or locked at all.
    """
    here, is_told = _boot(), False
    while True:
        with suppress(FileNotFoundError), _gone():
            status = os.stat(path)
            if not S_ISREG(status.st_mode):
                check_file(path)  # says what it is
            if _identity(status) in _held:
                raise FolderInUse(_refusal(path, _own_record()))
        locks = _locks(path)
        if not locks:
            if (created := _create(path)) is not None:
                break
            # Another process was faster, or this host does not see yet that the file is gone.
            time.sleep(POLL_S)
            continue
        last = locks[-1]
        is_locked = _is_locked(last.path)
        if is_locked:
            raise FolderInUse(_refusal(path, last.record))
        is_here = last.record.get("boot") == here and is_locked is not None
        if not is_here and not _is_abandoned(last, say=last.record != {} and not is_told):
            is_told = True
            if last.record and last.record in [lock.record for lock in _locks(path)]:
                raise FolderInUse(_refusal(path, last.record))
            continue
        # Dead, and of those who find that out now, one takes its place.
        heir = path.with_name(f"{NAME}.after-{last.id}")
        if (created := _create(heir)) is None:
            time.sleep(POLL_S)
            continue
        # A file that is gone: another process has been faster, and removed it.
        with suppress(FileNotFoundError), _gone():
            if [lock.id for lock in _locks(path)] == [lock.id for lock in locks]:
                os.replace(heir, path)
                break
        _held.discard(created[1])
        with suppress(OSError):
            heir.unlink()
        os.close(created[0])
    # What processes have left that died while they took the lock over.
    for heir in path.parent.glob(f"{NAME}.after-*"):
        with suppress(OSError):
            heir.unlink()
    return created


def _create(path: Path) -> tuple[int, tuple[int, int]] | None:
    """Create a file that locks for this process; its descriptor, device and inode. None if there is
    such a file, or another process removes it at once.

    Errors: OSError.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return None
    key = None
    try:
        key = _identity(os.fstat(descriptor))
        _held.add(key)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        os.pwrite(descriptor, json.dumps(_own_record()).encode(), 0)
        # Other hosts see what the server has.
        os.fsync(descriptor)
    except OSError as error:
        with suppress(OSError):
            path.unlink()
        if key is not None:
            _held.discard(key)
        os.close(descriptor)
        if error.errno == errno.ESTALE:
            return None
        raise
    return descriptor, key


def _locks(path: Path) -> list[_Lock]:
    """The lock, and those that take it over one after another; but not this process's.

    Errors: OSError if a file cannot be read.
    """
    locks: list[_Lock] = []
    while True:
        try:
            # Opening and closing it would release this process's lock.
            with _gone():
                is_ours = _identity(os.stat(path)) in _held
            if is_ours:
                break
            lock = _read(path)
        except FileNotFoundError:
            break
        locks.append(lock)
        path = path.with_name(f"{NAME}.after-{lock.id}")
    return locks


@contextmanager
def _gone() -> Iterator[None]:
    """Inside, a file that another host has removed is missing, also if this host knew it."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from None


def _read(path: Path) -> _Lock:
    """Read a lock's file. Errors: OSError."""
    # Opened each time: that is when network file systems ask the server.
    with _gone(), open(path, "rb") as file:
        record: dict[str, str] = {}
        # Its writer may have only just created it.
        with suppress(ValueError, AttributeError):
            items = parse_json(file.read(1 << 12)).items()
            record = {str(key): str(value) for key, value in items}
        return _Lock(path, record, os.fstat(file.fileno()).st_mtime_ns)


def _is_locked(path: Path) -> bool | None:
    """True if a process that this host's system knows of holds the file; None if the file system
    has no such locks. Errors: OSError."""
    question = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        with _gone(), open(path, "r+b") as file:
            answer = fcntl.fcntl(file, fcntl.F_GETLK, question)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return None
    return bool(struct.unpack(FLOCK, answer)[0] != fcntl.F_UNLCK)


def _is_abandoned(lock: _Lock, *, say: bool) -> bool:
    """Wait for a sign of life; True if there is none. False as well if the file goes."""
    if say:
        words = f"was written by {_words(lock.record)}; waiting {ABANDONED_S:.0f} s for a sign"
        tell(f"{lock.path.parent} {words} of life", error=True, flush=True)
    deadline = time.monotonic() + ABANDONED_S
    while (now := time.monotonic()) < deadline:
        try:
            current = _read(lock.path)
        except FileNotFoundError:
            return False
        if (current.id, current.changed) != (lock.id, lock.changed):
            return False
        # If the file system was away, its writer could not touch it either.
        if time.monotonic() - now > BEAT_S:
            deadline = time.monotonic() + ABANDONED_S
        time.sleep(ABANDONED_S / 20)
    return True


def _identity(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino


def _boot() -> str:
    """This host since its start. Its name alone may be that of another one, as in containers."""
    return f"{socket.gethostname()} {BOOT_ID.read_text().strip() if BOOT_ID.is_file() else ''}"


def _own_record() -> dict[str, str]:
    words = [Path(sys.argv[0]).name or "python", *sys.argv[1:]]
    return {
        "id": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "boot": _boot(),
        "pid": str(os.getpid()),
        "start": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": without_credentials(" ".join(words))[:200],
    }


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
