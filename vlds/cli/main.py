"""The command `vlds`: a rank works; any other process starts ranks, or runs the command itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from vlds.launch.rank import complain, run_rank
from vlds.launch.start import start
from vlds.launch.supervisor import say
from vlds.launch.words import split_words
from vlds.runtime.process_end import Interrupted, interruptible
from vlds.runtime.quiet_libraries import quiet_libraries
from vlds.runtime.rank_environment import is_rank
from vlds.runtime.terminal import tell_exception


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line, by default that of this process; the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        sys.excepthook = tell_exception
        quiet_libraries()
    if is_rank(os.environ):
        run_rank(arguments, run_here)
    try:
        words = split_words(arguments)
        if words.starts_ranks:
            return start(words)
    except ValueError as error:
        return complain("vlds", error)
    try:
        with interruptible():
            return run_here(words.for_ranks)
    except Interrupted as error:
        say(f"ended by {error.signal_name}")
        return error.exit_code


def run_here(arguments: Sequence[str]) -> int:
    """Run a command in this process; the exit code. A signal during the import below ends the
    process with one line, too."""
    from vlds.cli.commands import run_command

    return run_command(arguments)
