"""Runs one of our programs to its end, shows what it prints, follows its metrics, and stops it."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from vlds.api.progress import Shown
from vlds.runtime.json_files import parse_json
from vlds.runtime.process import heard, python
from vlds.training.sinks import LISTENER

Metrics: TypeAlias = dict[str, object]
"""A line of metrics.jsonl: "step", and what was logged there; "scores" is task -> name -> value."""
OnMetrics: TypeAlias = Callable[[Metrics], object]
POLL_S = 0.1
MISTAKE = 2


class Listener:
    """Hands each line of a run's metrics to a function, soon after it is written."""

    def __init__(self, file: Path, hear: OnMetrics) -> None:
        self.file, self._hear, self._offset = file, hear, 0

    def read(self) -> bool:
        """Hand over what is new; True if the function has had enough."""
        if not self.file.exists():
            return False
        with self.file.open("rb") as content:
            content.seek(self._offset)
            # What follows the last line end is still being written.
            whole, end, _ = content.read().rpartition(b"\n")
        self._offset += len(whole) + len(end)
        for line in whole.split(b"\n") if end else ():
            if self._hear(parse_json(line.decode())) is True:
                return True
        return False


class Program:
    """`python -m MODULE WORDS...` in a process of its own."""

    def __init__(
        self, module: str, words: Sequence[str], listener: Listener | None = None, unsaid: str = ""
    ) -> None:
        """`unsaid`: a line that is not shown."""
        self.command = python("-m", module, *words)
        self.listener, self.unsaid = listener, unsaid
        self.speaker = "error: " if words[0] == "data" else f"{module} {words[0]}: "
        """Begins the program's own message."""

    def run(self) -> bool:
        """Run it to its end; True if the listener has stopped it.

        Errors: with its own message, which is not shown then, or else its last line: ValueError for
        a user's mistake, else RuntimeError; whatever the listener's function raises, once the
        program has ended.
        """
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if self.listener is not None:
            environment[LISTENER] = str(self.listener.file)
        # In a new session, so that Ctrl-C in the terminal reaches it once, from here.
        process = subprocess.Popen(
            self.command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            start_new_session=True,
        )
        # Its output is read by a thread, because metrics may come without any.
        lines: queue.Queue[str | None] = queue.Queue()
        reader = threading.Thread(target=self._read, args=(process, lines), daemon=True)
        reader.start()
        last = ""
        messages: dict[str, None] = {}
        shown, stopped, number = Shown(), False, asking()
        try:
            line: str | None = ""
            while line is not None:
                try:
                    line = lines.get(timeout=POLL_S)
                except queue.Empty:
                    line = ""
                if line and line.startswith(self.speaker):
                    messages[line] = None
                elif line and line != self.unsaid:
                    shown.line(line)
                    last = line
                if self.listener is not None and not stopped and self.listener.read():
                    stopped = True
                    process.send_signal(number)
            code = process.wait()
        except BaseException:  # Ctrl-C too: no run outlives the program that asked for it
            end(process)
            raise
        is_stopped = stopped and code == 128 + number
        *others, message = messages or [""]
        if not code or is_stopped:
            others.append(message)
        for line in filter(None, others):
            shown.line(line)
        if code and not is_stopped:
            words = (message or last or f"exit code {code}").rstrip().removeprefix("error: ")
            raise ValueError(words) if code == MISTAKE else RuntimeError(words)
        return is_stopped

    def _read(self, process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put(None)


def asking() -> signal.Signals:
    """The signal that asks a program of ours to end. What a shell starts in the background ignores
    Ctrl-C, and so does all that it starts."""
    return signal.SIGINT if signal.SIGINT in heard() else signal.SIGTERM


def end(process: subprocess.Popen[str]) -> None:
    """Ask a program to end, and wait; a second Ctrl-C asks again, which ends it at once."""
    process.send_signal(asking())
    try:
        process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        process.wait()
