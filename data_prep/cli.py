"""The command line: one command for each data set, and those about packed data sets."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from vlds.data.errors import FetchError, ShardError
from vlds.runtime.command_line import CommandParser
from vlds.runtime.disk import CannotWrite
from vlds.runtime.process import Interrupted, interruptible
from vlds.runtime.terminal import tell

from . import official, own, plan, preview
from .checking import verify
from .classes import command as classes
from .classes.few_shot import FEW_SHOT_SETS
from .command import PROGRAM
from .demo import command as demo
from .own_data import chat
from .own_data import forms as jsonl
from .packed import index_command, simulate, stats, vocabularies
from .packing.file_check import MOST_SHOWN
from .packing.pack import LostWorker

COMMANDS = (
    *official.COMMANDS, *FEW_SHOT_SETS,
    own, jsonl, chat, classes, demo, plan, index_command, vocabularies, stats, verify, preview,
    simulate,
)  # fmt: skip
"""Modules that add a command; data_prep/official/__init__.py lists those for publishers' data."""
USER_ERROR = 2
Run = Callable[[argparse.Namespace], int | None]
"""Exit code; None is 0."""
INCOMPLETE = ": the data set being written is incomplete; --resume continues it"
KEPT = "; finished shards are kept: --resume continues from them"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; a user's error is one line and exit code 2."""
    try:
        args = build_parser().parse_args(arguments)
    except ValueError as error:
        tell(f"error: {error}", error=True)
        return USER_ERROR
    # Commands that write shards have --resume.
    run: Run = args.run
    can_resume, out = hasattr(args, "resume"), getattr(args, "out", None)

    def begun() -> bool:
        """True if there is something to resume: without an output folder there is nothing."""
        return can_resume and (not isinstance(out, Path) or out.exists())

    try:
        with interruptible():
            return run(args) or 0
    except (ValueError, ShardError, OSError) as error:
        kept = KEPT if begun() and isinstance(error, (LostWorker, CannotWrite, FetchError)) else ""
        message = str(error)
        # Our own subclasses say what to do.
        if isinstance(error, OSError) and str(error).startswith("[Errno") and error.filename:
            message = f"{str(error.filename)[-MOST_SHOWN:]}: {error.strerror or error}"
        tell(f"error: {message}{kept}", error=True)
        return USER_ERROR
    except Interrupted as error:
        tell(f"interrupted by {error.signal_name}{INCOMPLETE if begun() else ''}", error=True)
        return error.exit_code


def build_parser() -> CommandParser:
    parser = CommandParser(
        prog=PROGRAM,
        description="Pack vision-and-language data sets into WebDataset shards.\n\n"
        f"  {PROGRAM} vqav2 --src VQAV2 --split val --out shards/vqav2-val\n"
        f"  {PROGRAM} stats shards/vqav2-val",
        epilog=f"`{PROGRAM} COMMAND --help` says more about a command; for your own data see "
        f"`{PROGRAM} jsonl --help`.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in COMMANDS:
        module.add_command(commands)
    return parser
