"""What processes share: how Python starts, how they end (by a signal that asks for it, with the
parent that started them, or killed), which freed memory they keep, how they import large libraries,
and where the files that vlds brings are.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Thread, Timer
from types import FrameType, ModuleType
from typing import TypeVar

from vlds.runtime.checks import closest

Result = TypeVar("Result")

ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
"""Signals that ask a process to end: from a job script, Ctrl-C, a closed terminal, or before a
job's time is over (submitit, PyTorch Lightning)."""
KILLED = "killed (SIGKILL: by a user, or by the system when memory ran out)"
PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""
SAFE_PATH = "PYTHONSAFEPATH"
"""`-P` as a variable, for what libraries start: multiprocessing, DeepSpeed's launcher."""


def python(*words: object) -> list[str]:
    """The command line of another Python, which never imports from the working directory: a
    stranger's artifact may lie there. The words begin with `-m`, `-c` or options; a user's script
    comes first, and finds what lies beside it."""
    options = [] if words and not str(words[0]).startswith("-") else ["-P"]
    return [sys.executable, *options, *map(str, words)]


def signal_name(number: int) -> str:
    """What the user calls a signal."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


@contextmanager
def on_signals(handle: Callable[[int], object], numbers: Iterable[int]) -> Iterator[None]:
    """Inside, call `handle` with the number of each of these signals; afterwards the previous
    handlers are back. For the main thread."""
    before = {number: signal.signal(number, lambda number, _: handle(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def heard() -> list[signal.Signals]:
    """The signals in ASKING that are not ignored; nohup, for example, ignores SIGHUP."""
    return [number for number in ASKING if signal.getsignal(number) is not signal.SIG_IGN]


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal_name = signal_name(number)
        self.exit_code = 128 + number


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, a signal that asks for an end raises Interrupted, so that half-written outputs are
    removed. Interrupted also replaces an error that a library makes of it, as some do while they
    are imported."""
    received: list[Interrupted] = []
    postponed: list[tuple[int, Timer]] = []

    def interrupt(number: int) -> None:
        importing = "<frozen importlib._bootstrap>"
        frame: FrameType | None = sys._getframe()
        while frame is not None and frame.f_code.co_filename != importing:
            frame = frame.f_back
        # An exception during an import can abort the process: C++ code that initialises a module
        # may not expect one. So the signal is sent again, until it arrives outside of imports.
        if frame is not None:
            timer = Timer(0.05, os.kill, (os.getpid(), number))
            timer.daemon = True
            timer.start()
            postponed.append((number, timer))
            return
        received.append(Interrupted(number))
        raise received[0]

    with on_signals(interrupt, heard()):
        try:
            yield
        except Interrupted:
            raise
        except Exception as error:
            # Libraries wrap what a signal raised inside them in errors of their own.
            if received:
                raise received[0] from error
            raise
        finally:
            for _, timer in postponed:
                timer.cancel()
        if postponed:  # nothing ran after the import, so the second signal has not arrived
            raise Interrupted(postponed[0][0])


@contextmanager
def signals_collected(numbers: Iterable[int] | None = None) -> Iterator[list[int]]:
    """Inside, these signals end nothing: their numbers are added to a list. Default: `heard()`."""
    received: list[int] = []
    with on_signals(received.append, heard() if numbers is None else numbers):
        yield received


def end_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Let the system send this process a signal when its parent has ended, for whatever reason.

    The system watches the thread that started this process, so that thread must live as long as the
    parent does: true for the parent's main thread.
    """
    # multiprocessing knows the parent, even if that has ended before this line.
    started_by = multiprocessing.parent_process()
    parent = os.getppid() if started_by is None else started_by.pid
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the call
        os.kill(os.getpid(), number)


def how_it_ended(exit_code: int) -> str:
    """An exit code in words that follow the name of a process; -n means signal n, as in
    subprocess."""
    if exit_code == -signal.SIGKILL:
        return f"was {KILLED}"
    if exit_code < 0:
        return f"was ended by {signal_name(-exit_code)}"
    return f"ended with exit code {exit_code}"


class LostContact(Exception):
    """Another process or a server does not answer any more."""


def answered(call: Callable[[], Result], seconds: float, who: str) -> Result:
    """What a call returns that waits for another process or a server, which may be frozen or may
    never answer.

    Errors: LostContact after so many seconds; those of the call.
    """
    future: Future[Result] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # whatever it is, the caller gets it
            future.set_exception(error)

    # A daemon, which does not keep the command from its end.
    Thread(target=work, daemon=True).start()
    if not wait([future], seconds).done:
        raise LostContact(f"{who} has not answered for {seconds:.0f} s")
    return future.result()


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""From malloc.h."""


@contextmanager
def large_imports() -> Iterator[None]:
    """Import large libraries. They make half a million objects that live as long as the process: to
    look through them for garbage takes a sixth of the imports' time, and later a third of a second
    each time.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def keep_freed_memory() -> None:
    """Let a process on a CPU keep the memory that it frees, for its next step, unless the user has
    set how glibc returns it. Does nothing with another C library.

    By default, glibc gives each large tensor its own memory and returns it when the tensor is
    freed. So the kernel clears the same pages in every step: at batch 128, a ninth of the CPU's
    time.
    """
    # Tensors of up to 64 MiB share the heap, and -1 means that it never shrinks.
    tell_glibc({M_MMAP_THRESHOLD: 64 << 20, M_TRIM_THRESHOLD: -1})


@contextmanager
def returning_freed_memory() -> Iterator[None]:
    """Inside, the memory of each large tensor is its own, and goes back once the tensor is freed;
    what `keep_freed_memory` has kept goes back at once.

    By default, glibc soon lets tensors of up to 32 MiB share the heap. Where whole weights come and
    go between the parts that stay, a quarter of the heap ends as holes.
    """
    before = _told.get(M_MMAP_THRESHOLD, 32 << 20)  # as far as glibc raises it by itself
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
    tell_glibc({M_MMAP_THRESHOLD: 1 << 20})
    try:
        yield
    finally:
        tell_glibc({M_MMAP_THRESHOLD: before})


_told: dict[int, int] = {}
"""Options that glibc was told last."""


def tell_glibc(options: Mapping[int, int]) -> None:
    """Set options of its allocator, unless the user has set some, or the C library is another."""
    set_by_users = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
    if any(name in os.environ for name in set_by_users):
        return
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in options.items():
            # Before glibc 2.35, tensors of up to 32 MiB share the heap at most.
            tried = [value, min(value, 32 << 20)]
            taken = next((each for each in tried if mallopt(option, each)), None)
            if taken is not None:
                _told[option] = taken


PACKAGE = Path(__file__).resolve().parents[1]
FOLDERS = (PACKAGE.parent, PACKAGE)
"""Parents of the folders in SHIPPED: next to the package (checkout) or inside it (wheel)."""
SHIPPED = ("recipes", "sweeps", "ds_configs")
KINDS = (".yaml", ".json")
MOST_LISTED = 12
"""Names in an error message."""


def find(name: str | Path) -> Path:
    """The file or folder at this path, or else the shipped one of this name.

    find("recipes/demo.yaml") is the file in the working directory if it exists, else the demo
    recipe of vlds.

    Errors: ValueError that suggests another name.
    """
    path = Path(name)
    if path.exists():
        return path
    # No ".." and no other folders: next to vlds there may be anybody's files.
    if (
        not path.is_absolute()
        and path.parts
        and path.parts[0] in SHIPPED
        and ".." not in path.parts
    ):
        for folder in FOLDERS:
            if (folder / path).exists():
                return folder / path
    raise ValueError(f"no such file: {name}; {_cure(path)}")


def _cure(missing: Path) -> str:
    """What to name instead of a missing file: a near name in its folder or a shipped one."""
    ours = missing.parts[0] if missing.parts and missing.parts[0] in SHIPPED else None
    names = shipped(ours or "recipes")
    known = {Path(name).stem: name for name in names}
    kinds = (missing.suffix,) if missing.suffix in KINDS else KINDS
    with suppress(OSError):
        siblings = [file for file in missing.parent.iterdir() if file.suffix in kinds]
        known |= {file.stem: str(file) for file in siblings if file.is_file()}
    if ours is None and not missing.parent.is_dir() and missing.stem not in known:
        place = "" if missing.is_absolute() else f", relative to {Path.cwd()}"
        return f"there is no folder {missing.parent}{place}"
    # Names are compared without the suffix, which would make all of them similar.
    close = closest(missing.stem, known)
    hint = "" if close is None else f"did you mean '{known[close]}'? "
    if ours is None and (hint or missing.suffix != ".yaml"):
        return hint.rstrip() or "check the path"
    within = missing.parent if ours else Path("recipes")
    listed = [name for name in names if Path(name).parent == within] or names
    more = f" and {len(listed) - MOST_LISTED} more" if len(listed) > MOST_LISTED else ""
    check = "" if ours else "check the path, or name another; "
    return f"{hint}{check}vlds brings: {', '.join(listed[:MOST_LISTED])}{more}"


def data_prep(module: str) -> ModuleType:
    """A module of data_prep, which is next to vlds in a checkout and inside it in a wheel."""
    parent = "vlds.data_prep" if find_spec("vlds.data_prep") else "data_prep"
    return import_module(f"{parent}.{module}")


def shipped(folder: str) -> list[str]:
    """Names that find() knows in one of SHIPPED, sorted."""
    assert folder in SHIPPED
    for parent in FOLDERS:
        if (parent / folder).is_dir():
            files = (parent / folder).rglob("*")
            kept = (f for f in files if f.suffix in KINDS and f.suffixes[0] != ".schema")
            return sorted(str(file.relative_to(parent)) for file in kept)
    return []
