"""`plan`: which official files are there, where the others are, and the commands that pack them."""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlds.data.shards.info import DATASET_FILE
from vlds.runtime.process import python
from vlds.runtime.terminal import shell_command, tell

from .catalogue import PROGRAM
from .classes.few_shot import FEW_SHOT_SETS
from .command import new_command
from .official import COMMANDS, vg
from .official.published import Download, Published

PUBLISHED: Mapping[str, Published] = {
    entry.command: entry
    for entry in sorted(
        (
            entry
            for entry in (*COMMANDS, *FEW_SHOT_SETS, vg.PUBLISHED)
            if isinstance(entry, Published)
        ),
        key=lambda entry: entry.title.lower(),
    )
}
"""Command -> what its publisher offers, in the order of the titles."""


def downloads_of(published: Published) -> list[Download]:
    """Each download once, in the order of the splits."""
    return list(dict.fromkeys(entry for needed in published.needs.values() for entry in needed))


def words_of(published: Published, split: str, data: Path, out: Path) -> list[str]:
    """The words of the command that packs a split, after the program's name."""
    # "--src OKVQA --images COCO" -> --src DATA/OKVQA --images DATA/COCO
    places = [
        word if word.startswith("--") else str(data / word) for word in published.folders.split()
    ]
    for entry in published.needs[split]:
        if entry.option:
            places += [entry.option, str(data / entry.gives)]
    folder = out / f"{published.name or published.command}-{split}"
    return [published.command, *places, published.option, split, "--out", str(folder)]


def is_ready(needed: Sequence[Download], data: Path) -> bool:
    """True if all files of a split are there."""
    return all((data / entry.gives).exists() for entry in needed)


def run_commands(chosen: Sequence[Published], data: Path, out: Path) -> int:
    """Pack every split whose files are there and that is not packed yet; the exit code of the
    first command that fails, or 0. Says what there was to do."""
    packed, waiting, done = 0, 0, 0
    for published in chosen:
        for split, needed in published.needs.items():
            words = words_of(published, split, data, out)
            # A data set is whole once it has its description, which is written last.
            if (Path(words[-1]) / DATASET_FILE).is_file():
                packed += 1
                continue
            if not is_ready(needed, data):
                waiting += 1
                continue
            tell(shell_command(*PROGRAM.split(), *words))
            # A process for each: memory and open files of a large data set end with it.
            if code := subprocess.run(python("-m", "vlds", "data", *words)).returncode:
                return code
            done += 1
    nothing = "" if done else "nothing is left to do: "
    hint = f"; `{PROGRAM} plan --data {data}` names the missing files" if waiting else ""
    tell(
        f"{nothing}{done} split{'s' * (done != 1)} packed now, {packed} packed before, {waiting} "
        f"without their files in {data}{hint}"
    )
    return 0


def add_command(commands: Any) -> None:
    parser = new_command(
        commands,
        "plan",
        "Prints a shell script. Commands whose files are missing are comments. --run runs the "
        "others, except those whose output is complete.",
        examples=["plan --data DOWNLOADED", "plan okvqa gqa --data DOWNLOADED --run"],
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="COMMAND",
        help=f"data sets (default: all): {', '.join(PUBLISHED)}",
    )
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder with a folder for each publisher: COCO, OKVQA, ...",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("shards"), metavar="DIR", help="default: shards"
    )
    parser.add_argument("--run", action="store_true", dest="runs", help="run the commands")

    def run(args: argparse.Namespace) -> int:
        if odd := [name for name in args.names if name not in PUBLISHED]:
            raise ValueError(
                f"{odd[0]} is not a publisher's data set; there are {', '.join(PUBLISHED)}"
            )
        if not args.data.is_dir():
            raise ValueError(f"--data {args.data} is not a folder; name that of the downloads")
        chosen = [PUBLISHED[name] for name in args.names or PUBLISHED]
        if args.runs:
            return run_commands(chosen, args.data, args.out)
        for published in chosen:
            tell(f"# {published.title}")
            for entry in downloads_of(published):
                state = "there  " if (args.data / entry.gives).exists() else "missing"
                about = f"{entry.size}, {entry.licence}" if entry.size else entry.licence
                tell(f"#   {state} {args.data / entry.gives} ({about}) {entry.address}")
            for split, needed in published.needs.items():
                words = words_of(published, split, args.data, args.out)
                line = shell_command(*PROGRAM.split(), *words)
                tell(line if is_ready(needed, args.data) else f"# {line}")
        return 0

    parser.set_defaults(run=run)
