"""A disk that fails once: the n-th write, flush or rename in a folder raises an error.

Rust libraries (safetensors, tokenizers) write past Python: their writes are not counted, but the
flush of what they wrote is.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock


class Attempt(NamedTuple):
    """What became of a command."""

    code: int
    """Exit code."""
    stderr: str
    """What it wrote there; a traceback if it ended by an exception."""
    seen: int
    """Number of writes, flushes and renames that it tried."""


@dataclass
class FaultyDisk:
    """Counts the calls below a folder."""

    folder: Path
    failing: int
    """Index of the call that fails, counted from 1; 0: none."""
    errno: int
    seen: int = 0
    counter: int | None = None
    """A descriptor that gets one byte per call; its count survives a killed process."""

    def call(self, path: object) -> None:
        """Count one call; raises OSError if this one has to fail."""
        if not isinstance(path, (str, os.PathLike)) or not self.holds(os.fspath(path)):
            return
        self.seen += 1
        if self.counter is not None:
            os.write(self.counter, b".")
        if self.seen == self.failing:
            raise OSError(self.errno, os.strerror(self.errno))

    def holds(self, path: str | bytes) -> bool:
        """True if the path is below the folder."""
        return Path(os.path.realpath(os.fsdecode(path))).is_relative_to(self.folder)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Inside, this process's files are on the faulty disk."""
        with contextlib.ExitStack() as stack:
            opened = self._opening(io.open)
            for module, name, replacement in (
                (builtins, "open", opened),
                (io, "open", opened),
                (os, "fsync", self._by_descriptor(os.fsync)),
                (os, "pwrite", self._by_descriptor(os.pwrite)),
                (os, "replace", self._by_path(os.replace)),
                (os, "rename", self._by_path(os.rename)),
            ):
                stack.enter_context(mock.patch.object(module, name, replacement))
            yield

    def _by_descriptor(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(descriptor: int, *rest: Any) -> Any:
            self.call(os.readlink(f"/proc/self/fd/{descriptor}"))
            return real(descriptor, *rest)

        return call

    def _by_path(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *rest: Any, **options: Any) -> Any:
            self.call(path)
            return real(path, *rest, **options)

        return call

    def _opening(self, real: Callable[..., Any]) -> Callable[..., Any]:
        disk = self

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:
                disk.call(self.name)
                return super().write(data)

        def call(
            file: Any, mode: str = "r", buffering: int = -1, encoding: str | None = None,
            errors: str | None = None, newline: str | None = None, **rest: Any,
        ) -> Any:  # fmt: skip
            ours = isinstance(file, (str, bytes, os.PathLike)) and set(mode) & set("wax+")
            # Temporary files have an opener instead of a name.
            if not ours or rest.get("opener") or not disk.holds(os.fspath(file)):
                return real(file, mode, buffering, encoding, errors, newline, **rest)
            raw = Raw(os.fspath(file), mode.replace("b", "").replace("t", ""))
            binary = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return binary if "b" in mode else io.TextIOWrapper(binary, encoding, errors, newline)

        return call


def attempt(program: str, words: Sequence[str], folder: Path, failing: int, errno: int) -> Attempt:
    """Run a command of `vlds` or `data_prep` in this process, on such a disk."""
    if program == "vlds":
        from vlds.cli.main import run_command as main
    else:
        from data_prep.cli import main  # type: ignore[assignment]
    disk = FaultyDisk(Path(os.path.realpath(folder)), failing, errno)
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
        try:
            with disk.installed():
                code = main(list(words))
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            stderr.write(traceback.format_exc())
            code = 1
    return Attempt(code, stderr.getvalue(), disk.seen)
