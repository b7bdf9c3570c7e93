"""The command line: one command for each data set, and those about packed data sets. Only the
module of the command that runs is imported."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from vlds.runtime.command_line import DESCRIBE, CommandParser
from vlds.runtime.process import Interrupted, interruptible
from vlds.runtime.terminal import Away, tell

from .catalogue import CATALOGUE, PROGRAM

USER_ERROR = 2
Run = Callable[[argparse.Namespace], int | None]
"""Exit code; None is 0."""
INCOMPLETE = ": the data set being written is incomplete; --resume continues it"
KEPT = "; finished shards are kept: --resume continues from them"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; a user's error is one line and exit code 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        # These import the command's module, which takes a while.
        with interruptible():
            # Who asks for a description, as the completion of shells does, wants all options.
            named = (word for word in words if not word.startswith("-"))
            name = None if words == [DESCRIBE] else next(named, "")
            args = build_parser(name).parse_args(words)
            from vlds.runtime.cluster import LOCAL, LostWorker, UnfitWorker, open_cluster
    except ValueError as error:
        tell(f"error: {error}", error=True)
        return USER_ERROR
    except Interrupted as error:
        tell(f"interrupted by {error.signal_name}", error=True)
        return error.exit_code
    # Commands that write shards have --resume.
    run: Run = args.run
    can_resume, out = hasattr(args, "resume"), getattr(args, "out", None)

    def begun() -> bool:
        """True if there is something to resume: without an output folder there is nothing."""
        return can_resume and (not isinstance(out, Path) or out.exists())

    try:
        with interruptible(), open_cluster(getattr(args, "executor", LOCAL)) as args.cluster:
            return run(args) or 0
    except (ValueError, OSError) as error:
        from vlds.data.errors import FetchError
        from vlds.runtime.disk import CannotWrite

        from .packing.file_check import MOST_SHOWN

        # What is outside the data: the same command goes on once it is gone.
        outside = LostWorker, UnfitWorker, CannotWrite, FetchError, Away
        kept = KEPT if begun() and isinstance(error, outside) else ""
        message = str(error)
        # Our own subclasses say what to do.
        if isinstance(error, OSError) and str(error).startswith("[Errno") and error.filename:
            message = f"{str(error.filename)[-MOST_SHOWN:]}: {error.strerror or error}"
        tell(f"error: {message}{kept}", error=True)
        return 1 if isinstance(error, Away) else USER_ERROR
    except Interrupted as error:
        tell(f"interrupted by {error.signal_name}{INCOMPLETE if begun() else ''}", error=True)
        return error.exit_code


def build_parser(only: str | None = None) -> CommandParser:
    """The parser of all commands, or of one and the names of the others; of no command, "", it
    tells the names."""
    parser = CommandParser(
        prog=PROGRAM,
        description="Pack vision-and-language data sets into WebDataset shards.\n\n"
        f"  {PROGRAM} vqav2 --src VQAV2 --split val --out shards/vqav2-val\n"
        f"  {PROGRAM} stats shards/vqav2-val",
        epilog=f"`{PROGRAM} COMMAND --help` says more about a command; for your own data see "
        f"`{PROGRAM} jsonl --help`.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for module, lines in CATALOGUE.items():
        if only is None or only in lines:
            import_module(f".{module}", __package__).add_command(commands)
        else:
            for name, line in lines.items():
                commands.add_parser(name, help=line)
    return parser
