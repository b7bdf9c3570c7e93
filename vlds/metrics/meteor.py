"""METEOR 1.5, the Java program of pycocoevalcap, which answers line by line.

It answers "SCORE ||| reference ||| ... ||| caption" with the statistics of that caption, and "EVAL
||| statistics ||| ..." with a score for each caption and then the score of all, which comes from
the summed statistics: METEOR of parts of the data cannot be averaged.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO

from vlds.metrics import coco_package

JAR = "meteor-1.5.jar"
SEPARATOR = " ||| "
SECONDS_TO_END = 10


class Meteor:
    """A running METEOR."""

    def __init__(self, process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
        self.process = process
        self.errors = errors

    def score(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        """The score of all captions, each a line of tokens."""
        statistics = [
            self.ask(["SCORE", *given, caption.replace("|||", "").replace("  ", " ")])
            for caption, given in zip(captions, references, strict=True)
        ]
        self.ask(["EVAL", *statistics])  # the first caption's score
        for _ in captions[1:]:
            self.answer()
        return float(self.answer())

    def ask(self, words: Sequence[str]) -> str:
        """Send a line and read one."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # the program has ended; `answer` says why
            self.process.stdin.write(SEPARATOR.join(words).encode() + b"\n")
            self.process.stdin.flush()
        return self.answer()

    def answer(self) -> str:
        """The next line.

        Errors: RuntimeError if the program has ended.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode().strip()
        if not line:
            code = self.process.wait(SECONDS_TO_END)
            self.errors.seek(0)
            message = self.errors.read().decode(errors="replace")[-500:]
            raise RuntimeError(f"METEOR ended with exit code {code}: {message}")
        return line


@contextmanager
def running_meteor() -> Iterator[Meteor]:
    """Run METEOR inside the context. It takes seconds to start, and up to 2 GB."""
    command = ["java", "-Xmx2G", "-Dfile.encoding=UTF-8", "-jar", JAR,
               "-", "-", "-stdio", "-l", "en", "-norm"]  # fmt: skip
    with (
        tempfile.TemporaryFile() as errors,  # a pipe that nobody reads would block it
        subprocess.Popen(
            command,
            cwd=coco_package.folder("meteor"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as process,
    ):
        try:
            yield Meteor(process, errors)
        finally:
            process.kill()
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # closing flushes what could not be written
                process.stdin.close()


def meteor(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """METEOR of tokenized captions against their tokenized references."""
    with running_meteor() as program:
        return program.score(captions, references)
