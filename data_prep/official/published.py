"""What a publisher's data set declares once, for its command, `plan` and docs/reproduce.md.

Sizes are those of the downloads, as their servers or publishers say. No publisher here names a
checksum; a packed data set records the sha256 of the files it was made from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

from vlds.schema import CHOICE_LETTERS

from ..command import add_shard_options, new_command, packs
from ..json_rows import JsonRow, clean, shown
from ..packing.source import Annotation, SourceSet

CC_BY = "CC BY 4.0"


class Download(NamedTuple):
    """One file to download, and what it gives when it is unpacked."""

    gives: str
    """File or folder below the folder of all data."""
    address: str
    size: str = ""
    """"" if unknown."""
    licence: str = "not stated"
    option: str = ""
    """The command's option that names it; "" if it lies where the command looks by itself."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """What one command needs, split by split."""

    title: str
    command: str
    folders: str
    """Options that name folders below the folder of all data: "--src OKVQA --images COCO"."""
    needs: Mapping[str, tuple[Download, ...]]
    """Split -> what it needs; splits that `plan` does not pack are missing."""
    name: str = ""
    """Shards are in NAME-SPLIT; "": the command. The data set is called so, with "_" for "-"."""
    option: str = "--split"
    """The option that takes the split."""


@dataclass(frozen=True, kw_only=True)
class OfficialSet(Published):
    """A data set whose command reads a publisher's files: its downloads, options and parser."""

    parse: Callable[..., SourceSet]
    """Each parameter is the value of the option of the same name: `src` and `split`, `name`, and
    `images` if rows name pictures."""
    splits: Iterable[str] = ()
    """The choices of --split, if they are more than those of `needs`."""
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The command's other options -> what `add_argument` takes."""
    holds: str = "the official files"
    """What the folder --src holds."""

    def add_command(self, commands: Any) -> None:
        """Add the command to the parsers of all commands."""
        splits = tuple(self.splits or self.needs)
        name = (self.name or self.command).replace("-", "_")
        example = (
            f"{self.command} --src DOWNLOADED --split {splits[0]} \\\n"
            f"      --out shards/{self.command}"
        )
        parser = new_command(commands, self.command, examples=[example])
        add = parser.add_argument
        add("--src", type=Path, required=True, metavar="DIR", help=f"folder of {self.holds}")
        listed = f"one of {', '.join(splits)}"
        add("--split", choices=splits, required=True, metavar="SPLIT", help=listed)
        # The parser's parameters say which options there are; `packs` passes them by name.
        if "images" in signature(self.parse).parameters:
            add("--images", type=Path, metavar="DIR", help="pictures (default: --src)")
        add("--name", default=name, help=f"name of the data set (default: {name})")
        add_shard_options(parser)
        # --help lists what all commands share first.
        for option, arguments in self.options.items():
            add(option, **arguments)
        packs(parser, self.parse)


def other_file(text: str) -> dict[str, Any]:
    """An option that names a file to read instead of a usual one."""
    return {"type": Path, "metavar": "FILE", "help": text}


COCO: Mapping[str, Download] = {
    part: Download(
        f"COCO/{part}",
        f"http://images.cocodataset.org/zips/{part}.zip",
        size,
        "Flickr's terms for pictures",
    )
    for part, size in {
        "train2014": "13.5 GB", "val2014": "6.6 GB", "test2015": "12 GB", "train2017": "18 GB",
        "val2017": "1 GB", "test2017": "6 GB",
    }.items()
}  # fmt: skip
"""Pictures of COCO, which several data sets share."""
KARPATHY_ADDRESS = "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"
KARPATHY_COCO = Download("COCO/dataset_coco.json", KARPATHY_ADDRESS)
FLICKR30K = Download(
    "FLICKR30K/flickr30k-images",
    "https://shannon.cs.illinois.edu/DenotationGraph/",
    licence="by request; Flickr's terms for pictures",
)
"""Pictures of Flickr30k, which its captions and SNLI-VE share."""


def read_choices(row: JsonRow, answer_field: str) -> Annotation:
    """The `choices` of a question of A-OKVQA or ScienceQA, and `answer_index` if the split has
    answers.

    Errors: ValueError if there are fewer than two or more than five choices, or the answer is none
    of them.
    """
    # Tasks name choices by letters, of which there are five.
    choices = [clean(choice) for choice in row.texts("choices")]
    if not 2 <= len(choices) <= len(CHOICE_LETTERS):
        raise ValueError(
            f"{row.place}: 'choices' has {len(choices)} entries; expected 2 to "
            f"{len(CHOICE_LETTERS)}. Is it the official file?"
        )
    if answer_field not in row:
        return {"choices": choices}
    answer = row.whole(answer_field)
    if not 0 <= answer < len(choices):
        raise ValueError(
            f"{row.place}: {answer_field!r} is {answer}, and 'choices' is {shown(choices)}; "
            f"expected a number from 0 to {len(choices) - 1}"
        )
    return {"choices": choices, "answer_index": answer}
