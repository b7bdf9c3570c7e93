"""What publishers offer for download, for `plan` and docs/reproduce.md.

Sizes are those of the downloads, as their servers or publishers say. No publisher here names a
checksum; a packed data set records the sha256 of the files it was made from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from data_prep.json_rows import JsonRow, clean, shown
from data_prep.packing.source import Annotation
from vlds.schema import CHOICE_LETTERS


class Download(NamedTuple):
    """One file to download, and what it gives when it is unpacked."""

    gives: str
    """File or folder below the folder of all data."""
    address: str
    size: str
    """"" if unknown."""
    licence: str


class Published(NamedTuple):
    """What one command needs, split by split."""

    title: str
    command: str
    """The command and the options that name folders below the folder of all data."""
    splits: Mapping[str, tuple[Download, ...]]
    """Split -> what it needs."""
    name: str = ""
    """Its shards are in NAME-SPLIT; "": the command."""
    option: str = "--split"
    """The option that takes the split."""


CC_BY = "CC BY 4.0"
UNKNOWN = "not stated"
COCO_TERMS = "Flickr's terms for pictures"
COCO: Mapping[str, Download] = {
    part: Download(
        f"COCO/{part}", f"http://images.cocodataset.org/zips/{part}.zip", size, COCO_TERMS
    )
    for part, size in {
        "train2014": "13.5 GB", "val2014": "6.6 GB", "test2015": "12 GB", "train2017": "18 GB",
        "val2017": "1 GB", "test2017": "6 GB",
    }.items()
}  # fmt: skip
"""Pictures of COCO, which several data sets share."""
KARPATHY_ADDRESS = "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"
FLICKR30K = Download(
    "FLICKR30K/flickr30k-images",
    "https://shannon.cs.illinois.edu/DenotationGraph/",
    "",
    "by request; Flickr's terms for pictures",
)
"""Pictures of Flickr30k, which its captions and SNLI-VE share."""


# What A-OKVQA and ScienceQA share: the choices of a question, and the right one.


def read_choices(row: JsonRow, answer_field: str) -> Annotation:
    """The `choices` of a question, and `answer_index` if the split has answers.

    Errors: ValueError if there are fewer than two or more than five choices, or the answer is none
    of them.
    """
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
